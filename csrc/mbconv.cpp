// fastdarts::mbconv_sum and its backward on CPUs: all inverted bottlenecks of a layer, weighted and summed. Schema, fakes and
// autograd: fastdarts/ops/mbconv.py.
//
// The first norm's statistics come from the moments of x (mean W m, variance diag W K W'), so the expanded image is made in tiles,
// a block of channels at a time, and never stored. Of a candidate only the depthwise output is kept. Backward, the first norm needs
// no pass of its own: its part in dx is linear in dn1 and in x, and its sums follow from the product of dn1 and x.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "mbconv.h"
#include "schedule.h"

namespace fastdarts {
namespace {

constexpr int64_t kParams = 9;             // tensors of a candidate
constexpr int64_t kTileBytes = 192 << 10;  // of a padded tile: blocks of more channels as long as it stays in the second-level cache
enum { kExpand, kNorm1, kBias1, kTaps, kNorm2, kBias2, kProject, kNorm3, kBias3 };  // norms: weight, bias
constexpr int64_t kSmallImage = 64;        // pixels up to which y is kept as well: there products take the time, and memory is little
constexpr int64_t kGrain = 16;             // channels that a thread takes at once of work that is no image's

// Means and sums of squared differences of channels, joined by Chan et al.'s rule.
struct Moments {
  std::vector<double> mean, m2;
  double count = 0;

  explicit Moments(int64_t channels) : mean(channels, 0), m2(channels, 0) {}

  // sums: [3 (origin, sum, sum of squares about it), stride] of `pixels` numbers, for channels from `at`.
  template <class A>
  void add(const A* sums, int64_t pixels, int64_t at, int64_t channels, int64_t stride) {
    const double share = double(pixels) / (count + double(pixels)), joint = count * share;
    for (int64_t c = 0; c < channels; ++c) {
      const double sum = double(sums[stride + c]), shift = sum / double(pixels);
      join(at + c, double(sums[c]) + shift, std::max(0.0, double(sums[2 * stride + c]) - sum * shift), share, joint);
    }
  }
  void add(const Moments& more) {
    if (more.count == 0) return;
    const double share = more.count / (count + more.count), joint = count * share;
    for (size_t c = 0; c < mean.size(); ++c) join(c, more.mean[c], more.m2[c], share, joint);
    count += more.count;
  }

 private:
  void join(int64_t c, double other, double other_m2, double share, double joint) {
    const double delta = other - mean[c];
    mean[c] += delta * share;
    m2[c] += other_m2 + delta * delta * joint;
  }
};

// One call in one set of types.
template <class A, class T>
class Layer {
 public:
  Layer(const at::Tensor& x, at::TensorList params, const at::Tensor& weights, at::IntArrayRef kernels, int64_t stride, bool shortcut,
        bool six, double eps)
      : kernels_(mbconv_kernels<A, T>()), params_(params), n_(x.size(0)), shortcut_(shortcut), eps_(eps),
        threads_(std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), n_))), op_weights_(weights.const_data_ptr<A>()) {
    s_.h = x.size(2);
    s_.w = x.size(3);
    s_.c = x.size(1);
    s_.cp = padded_channels<A>(s_.c);
    s_.o = params[kProject].size(0);
    s_.op = padded_channels<A>(s_.o);
    s_.stride = stride;
    s_.ho = (s_.h - 1) / stride + 1;
    s_.wo = (s_.w - 1) / stride + 1;
    s_.pad = *std::max_element(kernels.begin(), kernels.end()) / 2;
    s_.limit = six ? 6.0 : std::numeric_limits<double>::infinity();
    for (size_t j = 0; j < kernels.size(); ++j) {
      Bottleneck<A> b{};
      b.kernel = kernels[j];
      b.m = param(j, kExpand).size(0);
      b.mb = block_size(b.m);
      b.mp = ceil_div(b.m, b.mb) * b.mb;
      offsets_.push_back(kept_);
      kept_ += n_ * s_.out_pixels() * b.mp;
      inside_ += b.m;
      widest_ = std::max(widest_, b.mp);
      widest_block_ = std::max(widest_block_, b.mb);
      list_.push_back(b);
    }
  }

  int64_t kept() const { return kept_ + (keeps_y() ? of_y() * int64_t(list_.size()) : 0); }
  int64_t statistics() const { return s_.c * (s_.c + 1) + 2 * inside_ * 2 + 2 * s_.o * int64_t(list_.size()); }
  at::Tensor make_out(const at::Tensor& x) const { return empty_image_in_block({n_, s_.o, s_.ho, s_.wo}, x.scalar_type()); }

  void forward(const at::Tensor& x, const at::Tensor& out, const at::Tensor& saved, const at::Tensor& stats) {
    stats_ = stats.data_ptr<A>();
    const T* from = pointer<T>(x);
    Block<A> dense(n_ * s_.pixels() * s_.cp);
    input_moments(from, dense.data());
    expanded_statistics();
    prepare_expansion(false);
    T* d = pointer<T>(saved);
    depthwise_outputs(dense.data(), d);
    Block<A> room(keeps_y() ? 1 : of_y() * int64_t(list_.size()));
    A* ys = keeps_y() ? kept_y(d) : room.data();
    std::vector<A*> images(list_.size()), means(list_.size()), scales(list_.size());
    A* shift = arena_.zeros(s_.op);
    for (size_t j = 0; j < list_.size(); ++j) {
      images[j] = ys + int64_t(j) * of_y();
      prepare_hidden(j, false);
      means[j] = arena_.zeros(s_.op);
      scales[j] = arena_.zeros(s_.op);
      project(j, d, images[j], means[j], scales[j], shift);
    }
    if (shortcut_)
      for (int64_t c = 0; c < s_.c; ++c) shift[c] += stats_[c];
    T* to = pointer<T>(out);
    over_images([&](int64_t lo, int64_t hi, int64_t) {
      std::vector<const A*> here(list_.size());
      for (int64_t n = lo; n < hi; ++n) {
        for (size_t j = 0; j < list_.size(); ++j) here[j] = images[j] + n * s_.out_pixels() * s_.op;
        kernels_.mix(here.data(), means.data(), scales.data(), int64_t(list_.size()), shift, shortcut_ ? image(dense.data(), n) : nullptr,
                     s_.out_pixels(), s_.o, s_.op, to + n * s_.out_pixels() * s_.o);
      }
    });
  }

  // gradients: of the op weights, then of each parameter, in the type that is computed in.
  void backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& saved, const at::Tensor& stats, const at::Tensor& dx,
                const std::vector<at::Tensor>& gradients, bool need_params) {
    stats_ = stats.data_ptr<A>();
    const int64_t of_x = s_.pixels() * s_.cp, of_g = s_.out_pixels() * s_.op;
    Block<A> room(keeps_y() ? 1 : of_y() * int64_t(list_.size()));
    Block<A> dense(n_ * of_x), g(n_ * of_g), dn(n_ * s_.out_pixels() * widest_), dx_sum(n_ * of_x);
    A *mean = arena_.zeros(s_.cp), *zero = arena_.zeros(s_.op);
    std::copy_n(stats_, s_.c, mean);
    over_images([&](int64_t lo, int64_t hi, int64_t) {
      for (int64_t n = lo; n < hi; ++n) {
        kernels_.read(pointer<T>(x) + n * s_.pixels() * s_.c, mean, s_.pixels(), s_.c, s_.cp, image(dense.data(), n));
        kernels_.read(pointer<T>(grad) + n * s_.out_pixels() * s_.o, zero, s_.out_pixels(), s_.o, s_.op, g.data() + n * of_g);
        std::fill_n(image(dx_sum.data(), n), of_x, A(0));
      }
    });
    prepare_expansion(true);
    T* d = pointer<T>(saved);
    A* ys = keeps_y() ? kept_y(d) : room.data();
    Block<double> outer(inside_ * s_.c);  // dn1 x' of all candidates
    std::vector<double> sums(inside_, 0.0);
    int64_t first = 0;
    for (size_t j = 0; j < list_.size(); ++j) prepare_hidden(j, true);
    const std::vector<std::vector<double>> of_norms = project_again(d, g.data(), ys);
    for (size_t j = 0; j < list_.size(); ++j) {
      const A* y = ys + int64_t(j) * of_y();
      const NormBack<A> third = third_norm(j, of_norms[j], gradients);
      const NormBack<A> second = project_backward(j, third, d, g.data(), y, dn.data(), gradients, need_params);
      expand_backward(j, second, dense.data(), d, dn.data(), dx_sum.data(), outer.data() + first * s_.c, sums.data() + first, gradients,
                      need_params);
      first += list_[j].m;
    }
    const LinearPart part = first_norm(outer.data(), sums, gradients);
    T* to = pointer<T>(dx);
    over_images([&](int64_t lo, int64_t hi, int64_t) {
      Block<A> strip(kStripPixels * s_.cp);
      for (int64_t n = lo; n < hi; ++n)
        kernels_.finish(image(dense.data(), n), part.matrix, part.constant, image(dx_sum.data(), n), shortcut_ ? g.data() + n * of_g : nullptr,
                        s_.pixels(), s_.c, s_.cp, strip.data(), to + n * s_.pixels() * s_.c);
    });
  }

 private:
  const at::Tensor& param(size_t j, int64_t which) const { return params_[j * kParams + which]; }
  const A* values(size_t j, int64_t which) const { return param(j, which).template const_data_ptr<A>(); }
  A* image(A* dense, int64_t n) const { return dense + n * s_.pixels() * s_.cp; }
  int64_t of_y() const { return n_ * s_.out_pixels() * s_.op; }
  bool keeps_y() const { return std::is_same_v<A, T> && s_.out_pixels() <= kSmallImage; }
  A* kept_y(T* saved) const {
    if constexpr (std::is_same_v<A, T>) return saved + kept_;
    return nullptr;
  }
  double pixels() const { return double(n_ * s_.out_pixels()); }
  int64_t tile_size(int64_t mb) const { return (s_.h + 2 * s_.pad) * (s_.w + 2 * s_.pad) * mb; }
  int64_t strip_size() const { return std::max(s_.pixels(), s_.out_pixels()) * widest_block_; }

  // Statistics: of x the mean [c] and covariance [c, c]; of each candidate's norms [2 (mean, biased variance), channels].
  A* norm_stats(size_t j, int64_t which) const {
    int64_t at = s_.c * (s_.c + 1);
    for (size_t i = 0; i < j; ++i) at += 4 * list_[i].m + 2 * s_.o;
    return stats_ + at + (which == kNorm1 ? 0 : which == kNorm2 ? 2 : 4) * list_[j].m;
  }

  // Products like blocks of several lines: they may add up to a sixteenth of zeros.
  int64_t block_size(int64_t m) const {
    const int64_t line = padded_channels<A>(1);
    for (int64_t lines : {4, 2}) {
      const int64_t block = lines * line, padded = ceil_div(m, block) * block;
      if (16 * (padded - m) <= m && tile_size(block) * int64_t(sizeof(A)) <= kTileBytes) return block;
    }
    return line;
  }

  template <class F>
  void over_images(const F& body) const {
    at::parallel_for(0, threads_, 1, [&](int64_t first, int64_t last) {
      for (int64_t thread = first; thread < last; ++thread) body(n_ * thread / threads_, n_ * (thread + 1) / threads_, thread);
    });
  }

  // body(channel) for each of `channels`.
  template <class F>
  static void over_channels(int64_t channels, const F& body) {
    at::parallel_for(0, channels, kGrain, [&](int64_t lo, int64_t hi) {
      for (int64_t m = lo; m < hi; ++m) body(m);
    });
  }

  // Joins the threads' moments of a norm and writes its statistics.
  void write(const std::vector<Moments>& parts, int64_t channels, A* to) const {
    Moments all(int64_t(parts[0].mean.size()));
    for (const Moments& part : parts) all.add(part);
    for (int64_t c = 0; c < channels; ++c) {
      to[c] = A(all.mean[c]);
      to[channels + c] = A(all.m2[c] / all.count);
    }
  }

  void input_moments(const T* x, A* dense) {
    std::vector<Moments> parts(threads_, Moments(s_.cp));
    A* mean = arena_.zeros(s_.cp);
    const auto read = [&](int64_t n) {
      kernels_.read(x + n * s_.pixels() * s_.c, mean, s_.pixels(), s_.c, s_.cp, image(dense, n));
    };
    over_images([&](int64_t lo, int64_t hi, int64_t thread) {
      std::vector<A> sums(3 * s_.cp);
      for (int64_t n = lo; n < hi; ++n) {
        read(n);
        kernels_.sums(image(dense, n), s_.pixels(), s_.cp, sums.data());
        parts[thread].add(sums.data(), s_.pixels(), 0, s_.cp, s_.cp);
        parts[thread].count += double(s_.pixels());
      }
    });
    Moments all(s_.cp);
    for (const Moments& part : parts) all.add(part);
    for (int64_t c = 0; c < s_.c; ++c) stats_[c] = mean[c] = A(all.mean[c]);
    std::vector<std::vector<A>> products(threads_, std::vector<A>(s_.cp * s_.cp));
    over_images([&](int64_t lo, int64_t hi, int64_t thread) {
      for (int64_t n = lo; n < hi; ++n) {
        read(n);
        kernels_.outer(image(dense, n), s_.pixels(), s_.cp, products[thread].data());
      }
    });
    for (int64_t i = 0; i < s_.c; ++i)
      for (int64_t j = 0; j < s_.c; ++j) {
        double sum = 0;
        for (const auto& part : products) sum += double(part[i * s_.cp + j]);
        stats_[s_.c + i * s_.c + j] = A(sum / double(n_ * s_.pixels()));
      }
  }

  // The expansions of all candidates, [all channels inside, c], and the covariance of x.
  at::Tensor all_expansions() const {
    std::vector<at::Tensor> parts;
    for (size_t j = 0; j < list_.size(); ++j) parts.push_back(param(j, kExpand));
    return at::cat(parts);
  }
  at::Tensor covariance() const { return at::from_blob(stats_ + s_.c, {s_.c, s_.c}, at::TensorOptions(kDtype<A>)); }

  void expanded_statistics() {
    const at::Tensor w = all_expansions(), wk = at::mm(w, covariance());
    const A *matrix = w.const_data_ptr<A>(), *product = wk.const_data_ptr<A>();
    for (size_t j = 0; j < list_.size(); ++j) {
      A* to = norm_stats(j, kNorm1);
      for (int64_t m = 0; m < list_[j].m; ++m, matrix += s_.c, product += s_.c) {
        double mean = 0, variance = 0;
        for (int64_t c = 0; c < s_.c; ++c) {
          mean += double(matrix[c]) * double(stats_[c]);
          variance += double(matrix[c]) * double(product[c]);
        }
        to[m] = A(mean);
        to[list_[j].m + m] = A(std::max(0.0, variance));
      }
    }
  }

  double rstd(size_t j, int64_t which, int64_t channels, int64_t c) const {
    return 1 / std::sqrt(double(norm_stats(j, which)[channels + c]) + eps_);
  }

  // The 1x1 convolutions with their norms in them, and the taps, as the kernels read them.
  void prepare_expansion(bool backward) {
    for (size_t j = 0; j < list_.size(); ++j) {
      Bottleneck<A>& b = list_[j];
      const int64_t taps = b.kernel * b.kernel;
      const A *w = values(j, kExpand), *weight = values(j, kNorm1), *bias = values(j, kBias1), *dw = values(j, kTaps);
      b.expand = arena_.zeros(s_.cp * b.mp);
      b.bias = arena_.zeros(b.mp);
      b.taps = arena_.zeros(taps * b.mp);
      b.expand_back = backward ? arena_.zeros(b.mp * s_.cp) : nullptr;
      b.taps_flipped = backward ? arena_.zeros(taps * b.mp) : nullptr;
      over_channels(b.m, [&](int64_t m) {
        const int64_t block = m / b.mb, lane = m % b.mb;
        const double scale = double(weight[m]) * rstd(j, kNorm1, b.m, m);
        b.bias[m] = bias[m];
        for (int64_t c = 0; c < s_.c; ++c) {
          const A v = A(scale * double(w[m * s_.c + c]));
          b.expand[(block * s_.cp + c) * b.mb + lane] = v;
          if (backward) b.expand_back[m * s_.cp + c] = v;
        }
        for (int64_t t = 0; t < taps; ++t) {
          b.taps[(block * taps + t) * b.mb + lane] = dw[m * taps + t];
          if (backward) b.taps_flipped[(block * taps + taps - 1 - t) * b.mb + lane] = dw[m * taps + t];
        }
      });
    }
  }

  void depthwise_outputs(const A* dense, T* saved) {
    std::vector<std::vector<Moments>> parts(list_.size());
    for (size_t j = 0; j < list_.size(); ++j) parts[j].assign(threads_, Moments(list_[j].mp));
    over_images([&](int64_t lo, int64_t hi, int64_t thread) {
      Block<A> tile(tile_size(widest_block_)), d(strip_size());
      std::vector<A> sums(3 * widest_block_);
      for (size_t j = 0; j < list_.size(); ++j) {
        const Bottleneck<A>& b = list_[j];
        std::fill_n(tile.data(), tile_size(b.mb), A(0));
        for (int64_t n = lo; n < hi; ++n) {
          T* to = saved + offsets_[j] + n * b.mp * s_.out_pixels();
          for (int64_t block = 0; block < b.blocks(); ++block, to += b.mb * s_.out_pixels()) {
            kernels_.expand(b, s_, dense + n * s_.pixels() * s_.cp, block, tile.data(), d.data(), to, sums.data());
            parts[j][thread].add(sums.data(), s_.out_pixels(), block * b.mb, b.mb, b.mb);
          }
          parts[j][thread].count += double(s_.out_pixels());
        }
      }
    });
    for (size_t j = 0; j < list_.size(); ++j) write(parts[j], list_[j].m, norm_stats(j, kNorm2));
  }

  void prepare_hidden(size_t j, bool backward) {
    Bottleneck<A>& b = list_[j];
    const A *weight = values(j, kNorm2), *bias = values(j, kBias2), *w = values(j, kProject), *stats = norm_stats(j, kNorm2);
    b.mean = arena_.zeros(b.mp);
    b.scale = arena_.zeros(b.mp);
    b.shift = arena_.zeros(b.mp);
    b.project = arena_.zeros(b.mp * s_.op);
    b.project_back = backward ? arena_.zeros(b.mp * s_.op) : nullptr;
    over_channels(b.m, [&](int64_t m) {
      b.mean[m] = stats[m];
      b.scale[m] = A(double(weight[m]) * rstd(j, kNorm2, b.m, m));
      b.shift[m] = bias[m];
      for (int64_t o = 0; o < s_.o; ++o) {
        b.project[m * s_.op + o] = w[o * b.m + m];
        if (backward) b.project_back[(m / b.mb * s_.op + o) * b.mb + m % b.mb] = w[o * b.m + m];
      }
    });
  }

  // y of a candidate and its norm's `mean` and `scale`; the common `shift` gets its part.
  void project(size_t j, const T* saved, A* y, A* mean, A* scale, A* shift) {
    const Bottleneck<A>& b = list_[j];
    std::vector<Moments> parts(threads_, Moments(s_.op));
    over_images([&](int64_t lo, int64_t hi, int64_t thread) {
      Block<A> h(kStripPixels * b.mp);
      std::vector<A> sums(3 * s_.op);
      for (int64_t n = lo; n < hi; ++n) {
        A* to = y + n * s_.out_pixels() * s_.op;
        kernels_.project(b, s_, saved + offsets_[j] + n * b.mp * s_.out_pixels(), h.data(), to);
        kernels_.sums(to, s_.out_pixels(), s_.op, sums.data());
        parts[thread].add(sums.data(), s_.out_pixels(), 0, s_.op, s_.op);
        parts[thread].count += double(s_.out_pixels());
      }
    });
    A* stats = norm_stats(j, kNorm3);
    write(parts, s_.o, stats);
    const A *weight = values(j, kNorm3), *bias = values(j, kBias3);
    for (int64_t o = 0; o < s_.o; ++o) {
      mean[o] = stats[o];
      scale[o] = A(double(op_weights_[j]) * double(weight[o]) * rstd(j, kNorm3, s_.o, o));
      shift[o] += A(double(op_weights_[j]) * double(bias[o]));
    }
  }

  // y of all candidates, once more unless kept; returns for each the sums of g and of g (y - mean), [2, op].
  std::vector<std::vector<double>> project_again(const T* saved, const A* g, A* ys) {
    std::vector<A*> means;
    std::vector<std::vector<std::vector<double>>> parts(list_.size());
    for (size_t j = 0; j < list_.size(); ++j) {
      means.push_back(arena_.zeros(s_.op));
      std::copy_n(norm_stats(j, kNorm3), s_.o, means[j]);
      parts[j].assign(threads_, std::vector<double>(2 * s_.op, 0));
    }
    const int64_t of_image = s_.out_pixels() * s_.op;
    over_images([&](int64_t lo, int64_t hi, int64_t thread) {
      Block<A> h(kStripPixels * widest_);
      for (int64_t n = lo; n < hi; ++n)
        for (size_t j = 0; j < list_.size(); ++j) {
          const Bottleneck<A>& b = list_[j];
          A* y = ys + (int64_t(j) * n_ + n) * of_image;
          double* sums = parts[j][thread].data();
          if (!keeps_y()) kernels_.project(b, s_, saved + offsets_[j] + n * b.mp * s_.out_pixels(), h.data(), y);
          kernels_.grad_sums(g + n * of_image, y, means[j], s_.out_pixels(), s_.op, sums, sums + s_.op);
        }
    });
    std::vector<std::vector<double>> all;
    for (const auto& of_candidate : parts) all.push_back(joined(of_candidate));
    return all;
  }

  // The backward of a norm with weight gamma times `factor`, from sums of g and of g (y - mean); writes the gradients of its
  // weight and bias.
  NormBack<A> norm_back(size_t j, int64_t which, int64_t channels, int64_t padded, double factor, const std::vector<double>& sum_g,
                        const std::vector<double>& sum_gy, const std::vector<at::Tensor>& gradients) {
    NormBack<A> n{arena_.zeros(padded), arena_.zeros(padded), arena_.zeros(padded), arena_.zeros(padded)};
    const A *weight = values(j, which), *stats = norm_stats(j, which);
    A *of_weight = gradient(gradients, j, which), *of_bias = gradient(gradients, j, which + 1);
    for (int64_t c = 0; c < channels; ++c) {
      const double r = rstd(j, which, channels, c), scale = factor * double(weight[c]) * r;
      n.mean[c] = stats[c];
      n.from_g[c] = A(scale);
      n.from_y[c] = A(-scale * r * r * sum_gy[c] / pixels());
      n.offset[c] = A(-scale * sum_g[c] / pixels());
      of_weight[c] = A(factor * r * sum_gy[c]);
      of_bias[c] = A(factor * sum_g[c]);
    }
    return n;
  }

  A* gradient(const std::vector<at::Tensor>& gradients, size_t j, int64_t which) const {
    return gradients[1 + j * kParams + which].template data_ptr<A>();
  }

  NormBack<A> third_norm(size_t j, const std::vector<double>& all, const std::vector<at::Tensor>& gradients) {
    const std::vector<double> sum_g(all.begin(), all.begin() + s_.op), sum_gy(all.begin() + s_.op, all.end());
    const A *weight = values(j, kNorm3), *bias = values(j, kBias3);
    double of_op = 0;
    for (int64_t o = 0; o < s_.o; ++o)
      of_op += double(weight[o]) * rstd(j, kNorm3, s_.o, o) * sum_gy[o] + double(bias[o]) * sum_g[o];
    gradients[0].template data_ptr<A>()[j] = A(of_op);
    return norm_back(j, kNorm3, s_.o, s_.op, double(op_weights_[j]), sum_g, sum_gy, gradients);
  }

  static std::vector<double> joined(const std::vector<std::vector<double>>& parts) {
    std::vector<double> all = parts[0];
    for (size_t t = 1; t < parts.size(); ++t)
      for (size_t i = 0; i < all.size(); ++i) all[i] += parts[t][i];
    return all;
  }

  NormBack<A> project_backward(size_t j, const NormBack<A>& third, const T* saved, const A* g, const A* y, A* dn,
                               const std::vector<at::Tensor>& gradients, bool need_params) {
    const Bottleneck<A>& b = list_[j];
    std::vector<std::vector<double>> parts(threads_, std::vector<double>(2 * b.mp, 0));
    const int64_t size = need_params ? b.mp * s_.op : 0;
    Block<A> weights(threads_ * size + 1);
    over_images([&](int64_t lo, int64_t hi, int64_t thread) {
      Block<A> h(kStripPixels * b.mp), dy(kStripPixels * s_.op), dh(kStripPixels * b.mb);
      std::vector<A> sums(2 * b.mp);
      A* weight = weights.data() + thread * size;
      std::fill_n(weight, size, A(0));
      const ProjectBack<A> to{h.data(), dy.data(), dh.data(), need_params ? weight : nullptr, sums.data()};
      for (int64_t n = lo; n < hi; ++n) {
        std::fill(sums.begin(), sums.end(), A(0));
        const int64_t at = n * s_.out_pixels() * s_.op, inside = n * b.mp * s_.out_pixels();
        kernels_.project_back(b, s_, third, saved + offsets_[j] + inside, g + at, y + at, to, dn + inside);
        for (size_t i = 0; i < sums.size(); ++i) parts[thread][i] += double(sums[i]);
      }
    });
    if (need_params) {
      A* to = gradient(gradients, j, kProject);
      over_channels(b.m, [&](int64_t m) {
        for (int64_t o = 0; o < s_.o; ++o) {
          double sum = 0;
          for (int64_t thread = 0; thread < threads_; ++thread) sum += double(weights.data()[thread * size + m * s_.op + o]);
          to[o * b.m + m] = A(sum);
        }
      });
    }
    const std::vector<double> all = joined(parts);
    const std::vector<double> sum_g(all.begin(), all.begin() + b.mp), sum_gy(all.begin() + b.mp, all.end());
    return norm_back(j, kNorm2, b.m, b.mp, 1.0, sum_g, sum_gy, gradients);
  }

  void expand_backward(size_t j, const NormBack<A>& second, const A* dense, const T* saved, const A* dn, A* dx,
                       double* outer, double* sums, const std::vector<at::Tensor>& gradients, bool need_params) {
    const Bottleneck<A>& b = list_[j];
    const int64_t taps = b.kernel * b.kernel, numbers = (taps + s_.cp + 1) * b.mp;
    Block<A> parts(threads_ * numbers);  // of each thread: gradients of the taps, outer products, sums
    over_images([&](int64_t lo, int64_t hi, int64_t thread) {
      A *of_taps = parts.data() + thread * numbers, *products = of_taps + taps * b.mp, *sum = products + s_.cp * b.mp;
      std::fill_n(of_taps, numbers, A(0));
      Block<A> tile(tile_size(b.mb)), grad_tile(tile_size(b.mb)), grad(strip_size()), dense_grad(strip_size());
      std::fill_n(tile.data(), tile_size(b.mb), A(0));
      std::fill_n(grad_tile.data(), tile_size(b.mb), A(0));
      for (int64_t n = lo; n < hi; ++n)
        for (int64_t block = 0; block < b.blocks(); ++block) {
          const ExpandBack<A> to{tile.data(),
                                 grad_tile.data(),
                                 grad.data(),
                                 dense_grad.data(),
                                 of_taps + block * taps * b.mb,
                                 products + block * s_.cp * b.mb,
                                 sum + block * b.mb,
                                 image(dx, n),
                                 need_params};
          const int64_t at = (n * b.mp + block * b.mb) * s_.out_pixels();
          kernels_.expand_back(b, s_, second, dense + n * s_.pixels() * s_.cp, saved + offsets_[j] + at, dn + at, block, to);
        }
    });
    A* of_taps = gradient(gradients, j, kTaps);
    over_channels(b.m, [&](int64_t m) {
      const int64_t block = m / b.mb, lane = m % b.mb;
      const auto total = [&](int64_t at) {
        double sum = 0;
        for (int64_t thread = 0; thread < threads_; ++thread) sum += double(parts.data()[thread * numbers + at]);
        return sum;
      };
      sums[m] = total((taps + s_.cp) * b.mp + m);
      for (int64_t c = 0; c < s_.c; ++c) outer[m * s_.c + c] = total(taps * b.mp + (block * s_.cp + c) * b.mb + lane);
      if (!need_params) return;
      for (int64_t t = 0; t < taps; ++t) of_taps[m * taps + t] = A(total((block * taps + t) * b.mb + lane));
    });
  }

  // Gradients of the expansions and their norms; and the matrix and constant by which x and the norms enter dx.
  struct LinearPart {
    A *matrix, *constant;
  };
  LinearPart first_norm(const double* outer, const std::vector<double>& sums, const std::vector<at::Tensor>& gradients) {
    const at::Tensor w = all_expansions(), wk = at::mm(w, covariance());
    const at::Tensor weighted = at::empty_like(w), constants = at::empty({1, inside_}, w.options());
    const double count = double(n_ * s_.pixels());
    int64_t first = 0;
    for (size_t j = 0; j < list_.size(); ++j) {
      const int64_t inside = list_[j].m;
      const A* weight = values(j, kNorm1);
      A *of_expand = gradient(gradients, j, kExpand), *of_weight = gradient(gradients, j, kNorm1),
        *of_bias = gradient(gradients, j, kBias1), *constant = constants.data_ptr<A>() + first;
      over_channels(inside, [&](int64_t m) {
        const int64_t at = (first + m) * s_.c;
        const A *matrix = w.const_data_ptr<A>() + at, *product = wk.const_data_ptr<A>() + at;
        const double *g = outer + at, r = rstd(j, kNorm1, inside, m), scale = double(weight[m]) * r;
        double centred = 0;
        for (int64_t c = 0; c < s_.c; ++c) centred += double(matrix[c]) * g[c];
        of_weight[m] = A(r * centred);
        of_bias[m] = A(sums[first + m]);
        constant[m] = A(-scale * sums[first + m] / count);
        const double linear = r * r * centred;
        A *to = of_expand + m * s_.c, *into = weighted.data_ptr<A>() + at;
        for (int64_t c = 0; c < s_.c; ++c) {
          to[c] = A(scale * (g[c] - linear * double(product[c])));
          into[c] = A(scale * linear / count * double(matrix[c]));
        }
      });
      first += inside;
    }
    const at::Tensor square = at::mm(w.t(), weighted), constant = at::mm(constants, w);
    const LinearPart part{arena_.zeros(s_.cp * s_.cp), arena_.zeros(s_.cp)};
    std::copy_n(constant.const_data_ptr<A>(), s_.c, part.constant);
    for (int64_t i = 0; i < s_.c; ++i) std::copy_n(square.const_data_ptr<A>() + i * s_.c, s_.c, part.matrix + i * s_.cp);
    return part;
  }

  const MbconvKernels<A, T>& kernels_;
  at::TensorList params_;
  int64_t n_;
  bool shortcut_;
  double eps_;
  int64_t threads_;
  const A* op_weights_;
  LayerShape s_{};
  std::vector<Bottleneck<A>> list_;
  std::vector<int64_t> offsets_;
  int64_t kept_ = 0, inside_ = 0, widest_ = 0, widest_block_ = 0;
  A* stats_ = nullptr;
  Arena<A> arena_;
};

void check(const at::Tensor& x, at::TensorList params, const at::Tensor& weights, at::IntArrayRef kernels, int64_t stride, bool shortcut,
           double eps) {
  check_tensor("mbconv_sum", "x", x);
  check_tensors("mbconv_sum", "params", params);
  check_tensor("mbconv_sum", "weights", weights);
  check_eps("mbconv_sum", eps);
  const int64_t count = int64_t(kernels.size());
  const at::ScalarType compute = compute_type(x.scalar_type());
  TORCH_CHECK_VALUE(x.dim() == 4 && x.numel() > 0, "mbconv_sum: x must be [N, C, H, W], not empty; got ", x.sizes());
  TORCH_CHECK_VALUE(count > 0 && int64_t(params.size()) == kParams * count && weights.sizes() == at::IntArrayRef({count}),
                    "mbconv_sum: ", count, " kernels need ", kParams * count, " params and as many weights; got ", params.size(),
                    " and ", weights.sizes());
  TORCH_CHECK_VALUE(stride == 1 || stride == 2, "mbconv_sum: stride must be 1 or 2; got ", stride);
  TORCH_CHECK_TYPE(weights.scalar_type() == compute && weights.is_contiguous(), "mbconv_sum: weights must be dense ", compute, "; got ",
                   weights.scalar_type());
  for (const at::Tensor& p : params)
    TORCH_CHECK_TYPE(p.scalar_type() == compute && p.is_contiguous(), "mbconv_sum: params must be dense ", compute, "; got ",
                     p.scalar_type());
  const int64_t c = x.size(1);
  for (int64_t j = 0; j < count; ++j) {
    const at::Tensor* p = &params[j * kParams];
    const int64_t k = kernels[j];
    TORCH_CHECK_VALUE(k == 3 || k == 5 || k == 7, "mbconv_sum: kernels must be 3, 5 or 7; got ", k);
    TORCH_CHECK_VALUE(p[kExpand].dim() == 2 && p[kExpand].size(0) > 0 && p[kProject].dim() == 2 && p[kProject].size(0) > 0,
                      "mbconv_sum: expansions and projections must be matrices");
    const int64_t m = p[kExpand].size(0), o = params[kProject].size(0);
    bool fit = p[kExpand].size(1) == c && p[kTaps].sizes() == at::IntArrayRef({m, k * k}) &&
               p[kProject].sizes() == at::IntArrayRef({o, m});
    for (const int64_t which : {kNorm1, kBias1, kNorm2, kBias2}) fit = fit && p[which].sizes() == at::IntArrayRef({m});
    for (const int64_t which : {kNorm3, kBias3}) fit = fit && p[which].sizes() == at::IntArrayRef({o});
    TORCH_CHECK_VALUE(fit,
                      "mbconv_sum: params of candidate ", j, " do not fit ", c, " channels, ", m, " inside and ", o, " out");
    TORCH_CHECK_VALUE(!shortcut || (o == c && stride == 1), "mbconv_sum: a shortcut needs stride 1 and as many channels out as in");
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> mbconv_sum(const at::Tensor& x, at::TensorList params, const at::Tensor& weights,
                                                           at::IntArrayRef kernels, int64_t stride, bool shortcut, bool six, double eps) {
  check(x, params, weights, kernels, stride, shortcut, eps);
  at::Tensor out, saved, stats;
  dispatch(x.scalar_type(), [&](auto a, auto t) {
    const at::Tensor dense = x.contiguous(at::MemoryFormat::ChannelsLast);
    Layer<decltype(a), decltype(t)> layer(dense, params, weights, kernels, stride, shortcut, six, eps);
    out = layer.make_out(x);
    saved = empty_in_block({layer.kept()}, x.scalar_type());
    stats = at::empty({layer.statistics()}, weights.options());
    layer.forward(dense, out, saved, stats);
  });
  return {out, saved, stats};
}

std::vector<at::Tensor> mbconv_sum_backward(const at::Tensor& grad, const at::Tensor& x, at::TensorList params,
                                            const at::Tensor& weights, const at::Tensor& saved, const at::Tensor& stats,
                                            at::IntArrayRef kernels, int64_t stride, bool shortcut, bool six, double eps,
                                            bool need_params) {
  check(x, params, weights, kernels, stride, shortcut, eps);
  for (const auto* t : {&grad, &saved}) {
    check_tensor("mbconv_sum_backward", "grad and saved", *t);
    TORCH_CHECK_TYPE(t->scalar_type() == x.scalar_type(), "mbconv_sum_backward: grad and saved must be ", x.scalar_type(), " as x; got ",
                     t->scalar_type());
  }
  check_tensor("mbconv_sum_backward", "stats", stats);
  std::vector<at::Tensor> result;
  dispatch(x.scalar_type(), [&](auto a, auto t) {
    const at::Tensor dense = x.contiguous(at::MemoryFormat::ChannelsLast), g = grad.contiguous(at::MemoryFormat::ChannelsLast);
    Layer<decltype(a), decltype(t)> layer(dense, params, weights, kernels, stride, shortcut, six, eps);
    const std::vector<int64_t> out{x.size(0), params[kProject].size(0), (x.size(2) - 1) / stride + 1, (x.size(3) - 1) / stride + 1};
    TORCH_CHECK_VALUE(grad.sizes() == at::IntArrayRef(out) && saved.is_contiguous() && saved.numel() == layer.kept() && stats.is_contiguous() &&
                          stats.numel() == layer.statistics() && stats.scalar_type() == weights.scalar_type(),
                      "mbconv_sum_backward: grad, saved and stats must be those of the forward pass");
    result.push_back(empty_image_in_block(x.sizes(), x.scalar_type()));
    std::vector<at::Tensor> gradients{at::empty_like(weights)};
    for (const at::Tensor& p : params) gradients.push_back(need_params ? at::empty_like(p) : at::zeros_like(p));
    layer.backward(g, dense, saved, stats, result[0], gradients, need_params);
    result.insert(result.end(), gradients.begin(), gradients.end());
  });
  return result;
}

}  // namespace
}  // namespace fastdarts

TORCH_LIBRARY_IMPL(fastdarts, CPU, m) {
  m.impl("mbconv_sum", &fastdarts::mbconv_sum);
  m.impl("mbconv_sum_backward", &fastdarts::mbconv_sum_backward);
}
