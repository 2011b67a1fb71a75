// Forward of the stages that leave a state, at stride 1 in bfloat16: a program takes all stages of a group of edges over
// its images, which stay in shared memory from pass to pass.
#pragma once

#include "products.cuh"

namespace fastdarts::planes {

// A stage: where its y goes in `saved`, its weights (in taps and matrices), and the state it begins with. Of the second
// stage of a separable convolution also the first, which is made again, with its batch norm; else first_kernel is 0.
struct Stage {
  int kernel, dilation, y, dw, pw, state;
  int first_kernel, first_dw, first_pw, first_norm;
};

struct Group {
  int first, last;
};

constexpr int kMostStates = 2;

struct Forward {
  const __nv_bfloat16* states[kMostStates];
  __nv_bfloat16* saved;       // [tensors, pixels, C]
  const float* dw;            // [taps, C]
  const __nv_bfloat16* pw;    // [matrices, C, C]
  const float* stats;         // [norms, 2 (mean, variance), C]
  float* moments;             // [stages, programs, 2 (mean, sum of squares about it), C]; null: not wanted
  const Stage* stages;
  const Group* groups;
  int images, x_pitch;
  int images_of_program;
  float eps;
};

// A state by its number, without an array that the kernel would have to copy to index it.
__device__ inline const __nv_bfloat16* state_of(const Forward& p, int number) {
  const __nv_bfloat16* state = p.states[0];
#pragma unroll
  for (int i = 1; i < kMostStates; ++i)
    if (number == i) state = p.states[i];
  return state;
}

// Calls the function for windows of this size.
template <int C, int W>
__device__ void convolve(int kernel, int dilation, const Planes<C, W>& from, const Planes<C, W>& to, const float* dw,
                         const __nv_bfloat16* zeros) {
  if (dilation == 2) {
    kernel == 3 ? convolve<3, 2>(from, to, dw, zeros) : convolve<5, 2>(from, to, dw, zeros);
  } else if (kernel == 3) {
    convolve<3, 1>(from, to, dw, zeros);
  } else {
    kernel == 5 ? convolve<5, 1>(from, to, dw, zeros) : convolve<7, 1>(from, to, dw, zeros);
  }
}

__device__ inline float sum_of_warp(float value) {
#pragma unroll
  for (int away = 16; away; away /= 2) value += __shfl_xor_sync(0xffffffffu, value, away);
  return value;
}

// Mean of each channel and the sum of squares about it, a warp a channel; of equal values the mean is exactly these.
template <int C, int W>
__device__ void store_moments(const Planes<C, W>& planes, float* moments) {
  constexpr int kFours = W / 4, kLines = 32 / kFours;  // a warp reads so many lines at once, four pixels a thread
  const int lane = thread() % 32, first = lane / kFours;
  const float pixels = planes.lines * W;
#pragma unroll 1
  for (int c = thread() / 32; c < C; c += kWarps) {
    const __nv_bfloat16* const plane = planes.at(c, first, lane % kFours * 4);
    float sum = 0, centred = 0, squares = 0;
    const __nv_bfloat16* at = plane;
    for (int line = first; line < planes.lines; line += kLines, at += kLines * kPitch<C, W>) {
      const uint2 four = *reinterpret_cast<const uint2*>(at);
      sum += (low(four.x) + high(four.x)) + (low(four.y) + high(four.y));
    }
    const float mean = sum_of_warp(sum) / pixels;
    at = plane;
    for (int line = first; line < planes.lines; line += kLines, at += kLines * kPitch<C, W>) {
      const uint2 four = *reinterpret_cast<const uint2*>(at);
      for (const float value : {low(four.x), high(four.x), low(four.y), high(four.y)}) {
        centred += value - mean;
        squares = fmaf(value - mean, value - mean, squares);
      }
    }
    centred = sum_of_warp(centred);
    squares = sum_of_warp(squares);
    if (lane == 0) {
      moments[c] = mean + centred / pixels;
      moments[C + c] = squares;
    }
  }
}

template <int C, int W>
__global__ void __launch_bounds__(kThreads, kProgramsPerSm) forward_kernel(const Forward p) {
  extern __shared__ __align__(16) unsigned char memory[];
  constexpr int kBlocks = C / 16;
  const int first_image = blockIdx.x * p.images_of_program;
  const int lines = min(p.images - first_image, p.images_of_program) * W;
  const std::int64_t begin = std::int64_t{first_image} * (W * W), pixels = std::int64_t{p.images} * (W * W);
  const Memory<C, W> m(memory, lines);
  const Group group = p.groups[blockIdx.y];
  load_relu(m.x, state_of(p, p.stages[group.first].state) + begin * p.x_pitch, p.x_pitch);
  for (int s = group.first; s < group.last; ++s) {
    const Stage& stage = p.stages[s];  // read where it is needed: windows leave no registers for it
    const bool second = stage.first_kernel != 0;
    if (second) {
      load_weight<C>(m.weight, p.pw + stage.first_pw * (C * C));
      __syncthreads();
      convolve(stage.first_kernel, 1, m.x, m.d, p.dw + stage.first_dw * C, m.zeros);
      float scales[kBlocks][2], shifts[kBlocks][2];
#pragma unroll
      for (int i = 0; i < kBlocks * 2; ++i) {
        const float* of_norm = p.stats + stage.first_norm * (2 * C) + i * 8 + threadIdx.x % 32 / 4;
        scales[i / 2][i % 2] = rsqrtf(of_norm[C] + p.eps);
        shifts[i / 2][i % 2] = -of_norm[0] * scales[i / 2][i % 2];
      }
      __syncthreads();
      pointwise(m.d, m.weight, [&](int block, int half, Word y) {
        const float scale = scales[block][half], shift = shifts[block][half];
        return pack(relu(fmaf(low(y), scale, shift)), relu(fmaf(high(y), scale, shift)));
      });
    }
    __syncthreads();
    load_weight<C>(m.weight, p.pw + stage.pw * (C * C));
    Planes<C, W> from = m.d;
    if (!second) from.values = m.x.values;
    convolve(stage.kernel, stage.dilation, from, m.d, p.dw + stage.dw * C, m.zeros);
    __syncthreads();
    pointwise(m.d, m.weight, [](int, int, Word y) { return y; });
    __syncthreads();
    store(m.d, p.saved + (stage.y * pixels + begin) * C, C);
    if (p.moments) store_moments(m.d, p.moments + (std::int64_t{s} * gridDim.x + blockIdx.x) * (2 * C));
  }
}

}  // namespace fastdarts::planes
