// What the schedules (mixed_sum.cpp, project.cpp) share: views, tiles over threads, batch norms.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <optional>
#include <type_traits>
#include <vector>

#include "block_cache.h"
#include "tile.h"

namespace fastdarts {

template <class T>
constexpr at::ScalarType kDtype = std::is_same_v<T, float>    ? at::kFloat
                                  : std::is_same_v<T, double> ? at::kDouble
                                                              : at::kBFloat16;

template <class T>
T* pointer(const at::Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

template <class T>
View<T> view_of(const at::Tensor& t, int64_t channel = 0) {
  return {pointer<std::remove_const_t<T>>(t) + channel * t.stride(1), t.stride(0), t.stride(2), t.stride(3)};
}

template <class T>
View<const T> as_const(const View<T>& v) {
  return {v.data, v.sn, v.sh, v.sw};
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Numbers that live as long as one call, in aligned pieces.
template <class A>
class Arena {
 public:
  A* take(int64_t count) {
    const int64_t size = ceil_div(count, 16) * 16;
    if (!blocks_.empty() && used_ + size <= capacity_) return hand_out(size);
    capacity_ = std::max<int64_t>(size, 1 << 16);
    used_ = 0;
    blocks_.push_back(std::make_unique<Block<A>>(capacity_));
    return hand_out(size);
  }
  A* zeros(int64_t count) {
    A* p = take(count);
    std::fill(p, p + count, A(0));
    return p;
  }

 private:
  A* hand_out(int64_t size) {
    A* p = blocks_.back()->data() + used_;
    used_ += size;
    return p;
  }
  std::vector<std::unique_ptr<Block<A>>> blocks_;
  int64_t capacity_ = 0, used_ = 0;
};

// Whole cache lines of A, which are whole vectors of every instruction set.
template <class A>
int64_t padded_channels(int64_t c) {
  constexpr int64_t line = 64 / int64_t(sizeof(A));
  return ceil_div(c, line) * line;
}

// Each thread has several chunks of the tiles; one that is done early takes what another has not begun.
constexpr int64_t kChunksOfThread = 4;

// body(lo, hi, chunk, thread) over a fixed partition of the tiles, whichever thread makes a chunk: the same sums in the same order
// for a given number of threads.
template <class F>
void over_tiles(const Geometry& geo, int64_t threads, const F& body) {
  const int64_t tiles = geo.n * geo.bands, chunks = threads * kChunksOfThread;
  std::vector<std::atomic_flag> taken(chunks);
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; ++thread)
      for (int64_t i = 0; i < chunks; ++i) {  // its own in order, then the others' from their ends
        const int64_t whose = (thread + i / kChunksOfThread) % threads, step = i % kChunksOfThread;
        const int64_t chunk = whose * kChunksOfThread + (whose == thread ? step : kChunksOfThread - 1 - step);
        const int64_t lo = tiles * chunk / chunks, hi = tiles * (chunk + 1) / chunks;
        if (!taken[chunk].test_and_set(std::memory_order_relaxed)) body(lo, hi, chunk, thread);
      }
  });
}

// The first chunk's numbers become the sums of all chunks', in order.
template <class A>
void join_chunks(A* numbers, int64_t count, int64_t chunks, int64_t from_chunk_to_chunk) {
  for (int64_t chunk = 1; chunk < chunks; ++chunk) {
    const A* more = numbers + chunk * from_chunk_to_chunk;
    for (int64_t i = 0; i < count; ++i) numbers[i] += more[i];
  }
}

// The statistics of a call's batch norms: [norms, 2 (mean, biased variance), channels]. Folded images (fold.h) have theirs in
// common: lane l is of channel l % channels.
template <class A>
class Norms {
 public:
  // affine: [norms, 2 (weight, bias), channels] in the type A, dense; or undefined.
  Norms(const at::Tensor& stats, const at::Tensor& affine, double eps)
      : data_(pointer<A>(stats)), affine_(affine.defined() ? pointer<A>(affine) : nullptr), c_(stats.size(2)), eps_(eps) {}

  // From the chunks' moments (Chan et al.), in order.
  void join(const Geometry& geo, int64_t chunks, int64_t cp, int64_t norm, const double* chunk_mean, const double* chunk_m2) const {
    std::vector<double> counts(chunks, 0);
    const int64_t tiles = geo.n * geo.bands;
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      for (int64_t t = tiles * chunk / chunks; t < tiles * (chunk + 1) / chunks; ++t)
        counts[chunk] += double(std::min(geo.rows, geo.ho - t % geo.bands * geo.rows) * geo.wo);
    std::vector<double> mean(c_, 0), m2(c_, 0);
    double seen = 0;
    for (int64_t lane = 0; lane < geo.c; lane += c_)
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        if (counts[chunk] == 0) continue;
        const double total = seen + counts[chunk], share = counts[chunk] / total, joint = seen * share;
        const double *more_mean = chunk_mean + chunk * cp + lane, *more_m2 = chunk_m2 + chunk * cp + lane;
        for (int64_t c = 0; c < c_; ++c) {
          const double delta = more_mean[c] - mean[c];
          mean[c] += delta * share;
          m2[c] += more_m2[c] + delta * delta * joint;
        }
        seen = total;
      }
    for (int64_t c = 0; c < c_; ++c) {
      data_[2 * norm * c_ + c] = A(mean[c]);
      data_[(2 * norm + 1) * c_ + c] = A(m2[c] / seen);
    }
  }

  void read(int64_t norm, int64_t lanes, const Norm<A>& to) const {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t first = 2 * norm * c_ + lane % c_, second = first + c_;
      const double rstd = 1 / std::sqrt(double(data_[second]) + eps_);
      to.mean[lane] = data_[first];
      to.rstd[lane] = A(rstd);
      to.scale[lane] = affine_ ? A(rstd * double(affine_[first])) : A(rstd);
      to.shift[lane] = affine_ ? affine_[second] : A(0);
    }
  }

  // Gradients of a norm's weight and bias into `affine`, if it is defined, from sums of its output's gradient g and of
  // g * (y - mean).
  void give(const at::Tensor& affine, int64_t norm, const Norm<A>& of, double weight, const double* sum_g,
            const double* sum_gy) const {
    if (!affine.defined()) return;
    A* to = pointer<A>(affine) + 2 * norm * c_;
    for (int64_t c = 0; c < c_; ++c) {
      to[c] = A(weight * double(of.rstd[c]) * sum_gy[c]);
      to[c_ + c] = A(weight * sum_g[c]);
    }
  }

 private:
  A* data_;
  const A* affine_;
  int64_t c_;
  double eps_;
};

template <class A>
Norm<A> make_norm(Arena<A>& arena, int64_t cp) {
  return {arena.zeros(cp), arena.zeros(cp), arena.zeros(cp), arena.zeros(cp)};
}

// dy = weight * scale * (g - mean(g) - z * mean(g z)), z = (y - mean) * rstd; `values` a channel, or 0 for fixed statistics.
template <class A, class T>
void set_coefficients(const Stage<A, T>& s, int64_t c, double weight, double sum_g, double sum_gy, double values) {
  const double rstd = double(s.norm.rstd[c]), scale = weight * double(s.norm.scale[c]);
  s.from_g[c] = A(scale);
  s.from_y[c] = values > 0 ? A(-scale * rstd * rstd * sum_gy / values) : A(0);
  s.offset[c] = values > 0 ? A(-scale * sum_g / values) : A(0);
}

inline at::Tensor channels_last(const at::Tensor& t) {
  return t.stride(1) == 1 || t.size(1) == 1 ? t : t.contiguous(at::MemoryFormat::ChannelsLast);
}

inline std::vector<at::Tensor> in_compute_type(at::TensorList params, at::ScalarType dtype) {
  std::vector<at::Tensor> result;
  for (const at::Tensor& p : params) result.push_back(p.to(dtype).contiguous());
  return result;
}

inline at::ScalarType compute_type(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

// An operator called directly gets tensors that nobody has looked at: on another device their memory is not ours to read.
inline void check_tensor(const char* name, const char* argument, const at::Tensor& t) {
  TORCH_CHECK_TYPE(t.device().is_cpu() && t.layout() == at::kStrided && at::isFloatingType(t.scalar_type()), name, ": ", argument,
                   " must be floating-point on cpu; got ", t.scalar_type(), " on ", t.device());
}

inline void check_tensors(const char* name, const char* argument, at::TensorList tensors) {
  for (const at::Tensor& t : tensors) check_tensor(name, argument, t);
}

inline void check_eps(const char* name, double eps) {
  TORCH_CHECK_VALUE(eps >= 0 && std::isfinite(eps), name, ": eps must be a finite number, 0 or more; got ", eps);
}

// The statistics of a call: those given, or memory for the batch's own.
inline at::Tensor make_stats(const char* name, const std::optional<at::Tensor>& running, int64_t norms, int64_t channels,
                             const at::TensorOptions& options) {
  if (!running) return at::empty({norms, 2, channels}, options);
  check_tensor(name, "running", *running);
  TORCH_CHECK_VALUE(running->sizes() == at::IntArrayRef({norms, 2, channels}), name, ": running must be [", norms, ", 2, ",
                    channels, "]; got ", running->sizes());
  return running->to(options.dtype()).clone(at::MemoryFormat::Contiguous);
}

// Weights and biases of a call's batch norms in the type that is computed in; undefined where they have none.
inline at::Tensor read_affine(const char* name, const std::optional<at::Tensor>& affine, int64_t norms, int64_t channels,
                              at::ScalarType compute) {
  if (!affine) return {};
  check_tensor(name, "affine", *affine);
  TORCH_CHECK_VALUE(affine->sizes() == at::IntArrayRef({norms, 2, channels}), name, ": affine must be [", norms, ", 2, ", channels,
                    "]; got ", affine->sizes());
  return affine->to(compute).contiguous();
}

// Memory for the gradients of what `read_affine` returned; undefined unless they are needed.
inline at::Tensor make_affine_gradient(const at::Tensor& affine, bool needed) {
  return affine.defined() && needed ? at::empty(affine.sizes(), affine.options()) : at::Tensor{};
}

// The gradients as a backward returns them: in the type of the argument, empty where none are needed.
inline at::Tensor affine_result(const at::Tensor& gradient, const std::optional<at::Tensor>& affine, const at::TensorOptions& options) {
  return gradient.defined() ? gradient.to(affine->scalar_type()) : at::empty({0}, options);
}

// What a backward gets from its forward, which hooks on saved tensors may have changed.
inline void check_saved(const char* name, const at::Tensor& saved, at::ScalarType dtype, const at::Tensor& stats, int64_t norms,
                        int64_t channels) {
  check_tensor(name, "saved", saved);
  check_tensor(name, "stats", stats);
  TORCH_CHECK_VALUE(saved.scalar_type() == dtype && saved.is_contiguous(), name, ": saved must be dense ", dtype, "; got ",
                    saved.scalar_type());
  TORCH_CHECK_VALUE(stats.sizes() == at::IntArrayRef({norms, 2, channels}) && stats.scalar_type() == compute_type(dtype) &&
                        stats.is_contiguous(),
                    name, ": stats must be dense ", compute_type(dtype), " [", norms, ", 2, ", channels, "]; got ",
                    stats.scalar_type(), " ", stats.sizes());
}

template <class F>
void dispatch(at::ScalarType dtype, const F& f) {
  if (dtype == at::kFloat)
    f(float{}, float{});
  else if (dtype == at::kDouble)
    f(double{}, double{});
  else if (dtype == at::kBFloat16)
    f(float{}, bf16{});
  else
    TORCH_CHECK_TYPE(false, "fastdarts on a CPU takes float32, float64 or bfloat16; got ", dtype);
}

}  // namespace fastdarts
