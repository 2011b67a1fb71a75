// Images in shared memory, channel by channel: how they lie there, and how they come from and go to channels-last memory.
//
// A line of W pixels lies between four zeros on its left and at least four on its right, which windows read beyond the
// image's edges. Lines are an odd number of 16 bytes apart, and so are channels: matrices of 8 lines or 8 channels are
// read and written without conflicts between banks.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace fastdarts::planes {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kProgramsPerSm = 2;
constexpr int kMargin = 4;        // zeros before a line; no window reaches further: 5x5 with dilation 2
constexpr int kMostPixels = 1024;  // of a program's images: what a warp keeps of one channel in registers

// Elements, rounded up to an odd number of 16 bytes.
constexpr __host__ __device__ int odd_eights(int n) { return ((n + 7) / 8 | 1) * 8; }

// Bytes of shared memory: an image's lines, twice; a line of zeros; a pointwise weight.
template <int C, int W>
constexpr int kPitch = odd_eights(W + 2 * kMargin);

template <int C>
constexpr int kWeightPitch = C + 8;

template <int C, int W>
constexpr __host__ __device__ int plane_size(int lines) {
  return odd_eights(lines * kPitch<C, W>);
}

template <int C, int W>
constexpr __host__ __device__ int shared_bytes(int lines) {
  return 2 * (2 * C * plane_size<C, W>(lines) + kPitch<C, W> + C * kWeightPitch<C>);
}

using Word = std::uint32_t;  // two bfloat16

__device__ inline Word pack(float low, float high) {
  Word packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ inline float low(Word packed) { return __uint_as_float(packed << 16); }
__device__ inline float high(Word packed) { return __uint_as_float(packed & 0xffff0000u); }

// NaN stays NaN, as in PyTorch.
__device__ inline Word relu(Word packed) {
  Word result;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(packed), "r"(0));
  return result;
}

__device__ inline float relu(float value) { return value < 0 ? 0 : value; }

// Read anew by each pass: what the compiler keeps of it from one to the next would have to wait in registers that
// windows need.
__device__ inline int thread() {
  int number;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(number));
  return number;
}

__device__ inline Word address(const void* shared) { return static_cast<Word>(__cvta_generic_to_shared(shared)); }

// A program's images, W pixels high and wide: [C, plane_size], `lines` lines in all.
template <int C, int W>
struct Planes {
  __nv_bfloat16* values;
  int size;  // elements of a channel
  int lines;

  __device__ __nv_bfloat16* at(int channel, int line, int column) const {
    return values + channel * size + line * kPitch<C, W> + kMargin + column;
  }
};

// What a program has in shared memory.
template <int C, int W>
struct Memory {
  Planes<C, W> x;  // of a state, behind its relu
  Planes<C, W> d;  // what a stage makes of it, one in another's place
  __nv_bfloat16* zeros;
  __nv_bfloat16* weight;  // of a product, [C, kWeightPitch]

  // Fills all of it with zeros.
  __device__ Memory(unsigned char* memory, int lines) {
    auto* values = reinterpret_cast<__nv_bfloat16*>(memory);
    const int size = plane_size<C, W>(lines);
    x = {values, size, lines};
    d = {values + C * size, size, lines};
    zeros = values + 2 * C * size;
    weight = zeros + kPitch<C, W>;
    for (int i = thread(); i < shared_bytes<C, W>(lines) / 16; i += kThreads)
      reinterpret_cast<uint4*>(memory)[i] = uint4{0, 0, 0, 0};
    __syncthreads();
  }
};

// Two pixels side by side of eight channels, from 16 bytes a pixel to a word a channel, and back.
__device__ inline void to_planes(const uint4& first, const uint4& second, Word (&words)[8]) {
  const Word a[4] = {first.x, first.y, first.z, first.w}, b[4] = {second.x, second.y, second.z, second.w};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    words[2 * k] = __byte_perm(a[k], b[k], 0x5410);
    words[2 * k + 1] = __byte_perm(a[k], b[k], 0x7632);
  }
}

__device__ inline void to_pixels(const Word (&words)[8], uint4& first, uint4& second) {
  Word a[4], b[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    a[k] = __byte_perm(words[2 * k], words[2 * k + 1], 0x5410);
    b[k] = __byte_perm(words[2 * k], words[2 * k + 1], 0x7632);
  }
  first = {a[0], a[1], a[2], a[3]};
  second = {b[0], b[1], b[2], b[3]};
}

// Calls `each(pixel, octet, word)` for two pixels side by side and eight channels: the number of the first pixel, of the
// first channel, and where the first channel's two values lie. Neighbouring threads take a pixel's channels.
template <int C, int W, typename Each>
__device__ void for_pairs(const Planes<C, W>& planes, const Each& each) {
  constexpr int kOctets = C / 8;
#pragma unroll 2
  for (int i = thread(); i < planes.lines * (W / 2) * kOctets; i += kThreads) {
    const int pixel = i / kOctets * 2, octet = i % kOctets * 8;
    each(pixel, octet, planes.at(octet, pixel / W, pixel % W));
  }
}

// Reads the relu of images, [pixels, pitch].
template <int C, int W>
__device__ void load_relu(const Planes<C, W>& planes, const __nv_bfloat16* images, int pitch) {
  for_pairs(planes, [&](int pixel, int octet, __nv_bfloat16* to) {
    const __nv_bfloat16* from = images + std::int64_t{pixel} * pitch + octet;
    Word words[8];
    to_planes(*reinterpret_cast<const uint4*>(from), *reinterpret_cast<const uint4*>(from + pitch), words);
#pragma unroll
    for (int k = 0; k < 8; ++k) *reinterpret_cast<Word*>(to + k * planes.size) = relu(words[k]);
  });
}

// Writes images, [pixels, pitch].
template <int C, int W>
__device__ void store(const Planes<C, W>& planes, __nv_bfloat16* images, int pitch) {
  for_pairs(planes, [&](int pixel, int octet, const __nv_bfloat16* from) {
    Word words[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) words[k] = *reinterpret_cast<const Word*>(from + k * planes.size);
    __nv_bfloat16* to = images + std::int64_t{pixel} * pitch + octet;
    to_pixels(words, *reinterpret_cast<uint4*>(to), *reinterpret_cast<uint4*>(to + pitch));
  });
}

}  // namespace fastdarts::planes
