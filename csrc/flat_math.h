// Arithmetic of the flat bilevel operators: what one element becomes, and how a sum of squares is ordered.
// Shared by flat.cpp (CPU) and cuda/flat_kernels.cuh (CUDA). Definitions of the operators: fastdarts/ops/flat_ops.py.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FASTDARTS_HD __host__ __device__ __forceinline__
#else
#define FASTDARTS_HD inline
#endif

namespace fastdarts::flat {

// The sum of squares of a vector is cut into chunks of kRows rows by kLanes lanes. Each lane adds up its column of the
// chunk, fold_lanes() adds the lanes in pairs; then the chunks' sums go the same way as one longer vector. The order
// depends on the length alone, never on threads or device. Squares and sums are double.
constexpr int kLanes = 128;
constexpr int kRows = 16;
constexpr int64_t kChunk = int64_t{kLanes} * kRows;

FASTDARTS_HD int64_t chunk_count(int64_t n) { return (n + kChunk - 1) / kChunk; }

FASTDARTS_HD double add_square(double sum, double value) { return sum + value * value; }

// One level of the pairwise sum: lane takes in its partner, for lane < width and width = kLanes / 2, ..., 1.
FASTDARTS_HD double fold(double lane, double partner) { return lane + partner; }

// w' = w - xi (momentum * buffer + gradient + weight_decay * w)
template <typename T>
struct VirtualStep {
  T xi, momentum, weight_decay;
  FASTDARTS_HD T operator()(T w, T gradient, T buffer) const {
    return w - xi * (momentum * buffer + gradient + weight_decay * w);
  }
};

// epsilon = r / norm; 0 for norm = 0, where there is no direction to go. NaN stays NaN.
FASTDARTS_HD double epsilon(double r, double norm) { return norm == 0 ? 0 : r / norm; }

// w + epsilon * direction
template <typename T>
struct Perturb {
  T epsilon;
  FASTDARTS_HD T operator()(T w, T direction) const { return w + epsilon * direction; }
};

// direct - xi * (plus - minus) / (2 epsilon), with 1 / epsilon = norm / r, which is 0 for norm = 0
struct Combine {
  double xi, norm, r;
  FASTDARTS_HD double operator()(double direct, double plus, double minus) const {
    return direct - xi * ((plus - minus) * (norm / (2 * r)));
  }
};

// Factor that brings a gradient of this norm down to max_norm; as torch.nn.utils.clip_grad_norm_. NaN stays NaN.
FASTDARTS_HD double clip_factor(double norm, double max_norm) {
  const double factor = max_norm / (norm + 1e-6);
  return factor >= 1 ? 1 : factor;
}

// The clipped gradient with weight decay goes into the momentum buffer, the buffer into the weight.
template <typename T>
struct ClippedSgd {
  T factor, lr, momentum, weight_decay;
  FASTDARTS_HD void operator()(T& w, T& buffer, T gradient) const {
    buffer = momentum * buffer + (factor * gradient + weight_decay * w);
    w -= lr * buffer;
  }
};

}  // namespace fastdarts::flat
