// CUDA kernels of the flat bilevel operators and their launches. No torch headers, so that it compiles in seconds.
// Scalars that change between steps (xi, lr, norms) are read on the device: a captured graph replays them.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "../flat_math.h"

namespace fastdarts::flat {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 2048;  // enough to fill any device; the loops stride over the rest
constexpr int kBlocksPerSm = 4;  // half of the threads an SM holds saturate its memory, with registers to spare
constexpr int kWarp = 32;
constexpr int kLanesPerThread = kLanes / kWarp;
static_assert(kLanesPerThread == 4, "a warp holds a row of a chunk, four lanes a thread");

// Width elements that move as one load or store of at most 16 bytes.
template <typename T, int Width>
struct alignas(sizeof(T) * Width) Pack {
  T value[Width];
};

template <typename T>
constexpr int kWidth = 16 / sizeof(T);

template <typename T>
struct VirtualStepPass {
  T* w;
  T* saved;
  const T* gradient;
  const T* buffer;  // may be null
  const double* xi;
  double momentum, weight_decay;

  template <int Width>
  __device__ void operator()(int64_t i) const {
    using P = Pack<T, Width>;
    const VirtualStep<T> step{T(*xi), T(momentum), T(weight_decay)};
    P at = *reinterpret_cast<const P*>(w + i);
    *reinterpret_cast<P*>(saved + i) = at;
    const P g = *reinterpret_cast<const P*>(gradient + i);
    P b{};
    if (buffer) b = *reinterpret_cast<const P*>(buffer + i);
#pragma unroll
    for (int k = 0; k < Width; ++k) at.value[k] = step(at.value[k], g.value[k], b.value[k]);
    *reinterpret_cast<P*>(w + i) = at;
  }
};

template <typename T>
struct PerturbPass {
  T* w;
  const T* saved;
  const T* direction;
  const double* norm;
  double r;

  template <int Width>
  __device__ void operator()(int64_t i) const {
    using P = Pack<T, Width>;
    const Perturb<T> step{T(epsilon(r, *norm))};
    P at = *reinterpret_cast<const P*>(saved + i);
    const P v = *reinterpret_cast<const P*>(direction + i);
#pragma unroll
    for (int k = 0; k < Width; ++k) at.value[k] = step(at.value[k], v.value[k]);
    *reinterpret_cast<P*>(w + i) = at;
  }
};

template <typename T>
struct CombinePass {
  T* out;
  const T* direct;
  const T* plus;
  const T* minus;
  const double* norm;
  const double* xi;
  double r;

  template <int Width>
  __device__ void operator()(int64_t i) const {
    const Combine combined{*xi, *norm, r};
#pragma unroll
    for (int k = 0; k < Width; ++k) out[i + k] = T(combined(direct[i + k], plus[i + k], minus[i + k]));
  }
};

template <typename T>
struct ClippedSgdPass {
  T* w;
  T* buffer;  // may be null
  const T* gradient;
  const double* norm;
  const double* lr;
  double momentum, weight_decay, max_norm;

  template <int Width>
  __device__ void operator()(int64_t i) const {
    using P = Pack<T, Width>;
    const ClippedSgd<T> step{T(clip_factor(*norm, max_norm)), T(*lr), T(momentum), T(weight_decay)};
    P at = *reinterpret_cast<const P*>(w + i);
    P b{};
    if (buffer) b = *reinterpret_cast<const P*>(buffer + i);
    const P g = *reinterpret_cast<const P*>(gradient + i);
#pragma unroll
    for (int k = 0; k < Width; ++k) step(at.value[k], b.value[k], g.value[k]);
    if (buffer) *reinterpret_cast<P*>(buffer + i) = b;
    *reinterpret_cast<P*>(w + i) = at;
  }
};

// One pass over n elements, Width at a time; the last n % Width one at a time.
template <int Width, typename Pass>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm) pass_kernel(int64_t n, Pass pass) {
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  const int64_t packs = n / Width;
#pragma unroll 1  // most threads make one turn
  for (int64_t pack = thread; pack < packs; pack += stride) pass.template operator()<Width>(pack * Width);
#pragma unroll 1
  for (int64_t i = packs * Width + thread; i < n; i += stride) pass.template operator()<1>(i);
}

template <int Width, typename Pass>
void launch_pass(int64_t n, const Pass& pass, cudaStream_t stream) {
  const int64_t blocks = std::clamp<int64_t>((n / Width + kThreads - 1) / kThreads, 1, kMaxBlocks);
  pass_kernel<Width><<<unsigned(blocks), kThreads, 0, stream>>>(n, pass);
}

// Sum of the 128 lanes of a warp, four in each thread; every level pairs the lanes as fold_lanes on the CPU does.
__device__ inline double fold_warp(double (&lanes)[kLanesPerThread]) {
#pragma unroll
  for (int width = kWarp / 2; width > 0; width /= 2) {
#pragma unroll
    for (int k = 0; k < kLanesPerThread; ++k) lanes[k] = fold(lanes[k], __shfl_down_sync(0xffffffffu, lanes[k], width));
  }
  return fold(fold(lanes[0], lanes[2]), fold(lanes[1], lanes[3]));
}

// First stage: a warp sums the squares of one chunk.
template <typename T, int Width>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm) chunk_kernel(int64_t n, const T* values, double* sums) {
  const int64_t chunk = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (chunk >= chunk_count(n)) return;
  const int first_lane = threadIdx.x % kWarp * kLanesPerThread;
  double lanes[kLanesPerThread] = {};
  const int64_t begin = chunk * kChunk + first_lane;
  const int64_t full = (chunk + 1) * kChunk;
  const int64_t end = full < n ? full : n;
  for (int64_t i = begin; i < end; i += kLanes) {
    if (i + kLanesPerThread <= end) {
#pragma unroll
      for (int k = 0; k < kLanesPerThread; k += Width) {
        const auto pack = *reinterpret_cast<const Pack<T, Width>*>(values + i + k);
#pragma unroll
        for (int l = 0; l < Width; ++l) lanes[k + l] = add_square(lanes[k + l], pack.value[l]);
      }
    } else {
#pragma unroll
      for (int k = 0; k < kLanesPerThread; ++k)
        if (i + k < end) lanes[k] = add_square(lanes[k], values[i + k]);
    }
  }
  const double sum = fold_warp(lanes);
  if (first_lane == 0) sums[chunk] = sum;
}

// Second stage: one warp sums the chunks' sums.
__global__ void __launch_bounds__(kWarp) norm_kernel(int64_t chunks, const double* sums, double* norm) {
  double lanes[kLanesPerThread] = {};
  const int first_lane = threadIdx.x * kLanesPerThread;
  for (int64_t i = first_lane; i < chunks; i += kLanes) {
#pragma unroll
    for (int k = 0; k < kLanesPerThread; ++k)
      if (i + k < chunks) lanes[k] += sums[i + k];
  }
  const double sum = fold_warp(lanes);
  if (first_lane == 0) *norm = sqrt(sum);
}

// sums: room for chunk_count(n) doubles.
template <typename T, int Width>
void launch_norm(int64_t n, const T* values, double* sums, double* norm, cudaStream_t stream) {
  constexpr int64_t warps = kThreads / kWarp;
  const int64_t chunks = chunk_count(n);
  if (chunks) chunk_kernel<T, Width><<<unsigned((chunks + warps - 1) / warps), kThreads, 0, stream>>>(n, values, sums);
  norm_kernel<<<1, kWarp, 0, stream>>>(chunks, sums, norm);
}

}  // namespace fastdarts::flat
