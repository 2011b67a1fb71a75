// Products of matrix instructions over planes in shared memory: windows as bands of taps, and pointwise convolutions.
#pragma once

#include "planes.cuh"

namespace fastdarts::planes {

// Four 8x8 matrices of 16-bit numbers whose lines the lanes point at, eight lanes a matrix.
__device__ inline void load_matrices(Word (&to)[4], Word line) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(line)
               : "memory");
}

// Two matrices, transposed; the first 16 lanes point at their lines.
__device__ inline void load_transposed(Word (&to)[2], Word line) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(to[0]), "=r"(to[1])
               : "r"(line)
               : "memory");
}

// sums[16, 8] += a[16, 16] b[16, 8]. A lane has sums of lines lane / 4 and 8 further, columns lane % 4 * 2 and the next.
__device__ inline void multiply(float (&sums)[4], const Word (&a)[4], const Word (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// A lane's part of the band [16 inputs, 8 outputs] of a line of taps: output n stands over input n + kMargin.
// taps: [Kernel, channels] of this line, at a channel.
template <int Kernel, int Dilation>
__device__ void load_band(Word (&band)[2], const float* taps, int channels, int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float values[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int away = lane % 4 * 2 + half * 8 + k - kMargin - lane / 4 + Kernel / 2 * Dilation;
      const bool inside = away >= 0 && away < Kernel * Dilation && away % Dilation == 0;
      values[k] = inside ? taps[away / Dilation * channels] : 0.0f;
    }
    band[half] = pack(values[0], values[1]);
  }
}

// The depthwise convolution of all channels, a warp a channel: 16 lines x 8 columns at a time, a product of the lines
// above or below with a band for each line of taps. `to` may be `from`: a channel is complete before it is written.
// dw: [taps, C].
template <int Kernel, int Dilation, int C, int W>
__device__ void convolve(const Planes<C, W>& from, const Planes<C, W>& to, const float* dw, const __nv_bfloat16* zeros) {
  constexpr int kAcross = W / 8, kDown = kMostPixels / W / 16, kPitchBytes = kPitch<C, W> * 2;
  const int lane = thread() % 32;
#pragma unroll 1
  for (int c = thread() / 32; c < C; c += kWarps) {
    Word bands[Kernel][2];
#pragma unroll
    for (int ky = 0; ky < Kernel; ++ky) load_band<Kernel, Dilation>(bands[ky], dw + ky * Kernel * C + c, C, lane);
    const Word plane = address(from.values + c * from.size), nothing = address(zeros);
    Word results[kDown][kAcross][2];
#pragma unroll
    for (int down = 0; down < kDown; ++down) {
      if (down * 16 >= from.lines) continue;
      const int line = down * 16 + lane % 16, h = line % W;
      Word lines[Kernel];
#pragma unroll
      for (int ky = 0; ky < Kernel; ++ky) {
        const int dy = (ky - Kernel / 2) * Dilation;
        const bool inside = line < from.lines && h + dy >= 0 && h + dy < W;
        lines[ky] = (inside ? plane + (line + dy) * kPitchBytes : nothing) + lane / 16 * 16;
      }
#pragma unroll
      for (int across = 0; across < kAcross; ++across) {
        float sums[4] = {};
#pragma unroll
        for (int ky = 0; ky < Kernel; ++ky) {
          Word inputs[4];
          load_matrices(inputs, lines[ky] + across * 16);
          multiply(sums, inputs, bands[ky]);
        }
        results[down][across][0] = pack(sums[0], sums[1]);
        results[down][across][1] = pack(sums[2], sums[3]);
      }
    }
    __syncwarp();
#pragma unroll
    for (int down = 0; down < kDown; ++down) {
      if (down * 16 >= from.lines) continue;
#pragma unroll
      for (int across = 0; across < kAcross; ++across)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int line = down * 16 + half * 8 + lane / 4, column = across * 8 + lane % 4 * 2;
          if (line < to.lines) *reinterpret_cast<Word*>(to.at(c, line, column)) = results[down][across][half];
        }
    }
  }
}

// Copies a pointwise weight [C, C] for `pointwise`.
template <int C>
__device__ void load_weight(__nv_bfloat16* to, const __nv_bfloat16* weight) {
  for (int i = thread(); i < C * C / 8; i += kThreads)
    *reinterpret_cast<uint4*>(to + i / (C / 8) * kWeightPitch<C> + i % (C / 8) * 8) =
        reinterpret_cast<const uint4*>(weight)[i];
}

// Puts `finish(output, value)` of a pointwise convolution in its input's place, eight pixels at a time; zeros stay
// around the lines.
template <int C, int W, typename Finish>
__device__ void pointwise(const Planes<C, W>& planes, const __nv_bfloat16* weight, const Finish& finish) {
  constexpr int kBlocks = C / 16, kOfLine = W / 8 + 1;
  const int lane = thread() % 32;
  const Word weights = address(weight) + (lane % 16 * kWeightPitch<C> + lane / 16 * 8) * 2;
  for (int group = thread() / 32; group < planes.lines * kOfLine; group += kWarps) {
    __nv_bfloat16* pixels = planes.values + group / kOfLine * kPitch<C, W> + group % kOfLine * 8;
    Word inputs[kBlocks][2];
#pragma unroll
    for (int k = 0; k < kBlocks; ++k)
      load_transposed(inputs[k], address(pixels + (k * 16 + lane % 16) * planes.size));
    const int column = group % kOfLine * 8 + lane % 4 * 2 - kMargin;
    const bool inside = column >= 0 && column < W;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
      float sums[4] = {};
#pragma unroll
      for (int k = 0; k < kBlocks; ++k) {
        Word factors[4];
        load_matrices(factors, weights + (m * 16 * kWeightPitch<C> + k * 16) * 2);
        multiply(sums, factors, inputs[k]);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int output = m * 16 + half * 8 + lane / 4;
        const Word value = pack(sums[2 * half], sums[2 * half + 1]);
        if (inside) *reinterpret_cast<Word*>(pixels + output * planes.size + lane % 4 * 2) = finish(m, half, value);
      }
    }
  }
}

}  // namespace fastdarts::planes
