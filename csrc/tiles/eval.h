// A cell in eval mode.
#pragma once
#include "../eval.h"
#include "depthwise.h"
#include "product.h"

namespace fastdarts::FASTDARTS_ISA {

// done(pixel, j, sum_k d[pixel, k] * w[k, j-th vector]) for COLS vectors; pixels of d stand `step` apart.
template <class A, int COLS, class F>
FD_INLINE void multiply_columns(const A* d, int64_t pixels, int64_t step, const A* w, int64_t cp, int64_t k, const F& done) {
  exact_blocks<COLS == 1 ? kSingleRows : kPairRows>(pixels, [&](auto size, int64_t p) FD_LAMBDA {
    product_block<A, A, 0, size.value, COLS>(d + p * step, step, 1, w, cp, k,
                                             [&](int row, int j, Vec<A> v) FD_LAMBDA { done(p + row, j, v); });
  });
}

// done(pixel, first channel, vector of the product) for all pixels and channels.
template <class A, class F>
FD_INLINE void multiply(const A* d, int64_t pixels, int64_t step, const A* w, int64_t k, int64_t cp, const F& done) {
  const auto columns = [&](auto count, int64_t c) FD_LAMBDA {
    multiply_columns<A, count.value>(d, pixels, step, w + c, cp, k, [&](int64_t p, int j, Vec<A> v) FD_LAMBDA {
      done(p, c + j * kLanes<A>, v);
    });
  };
  int64_t c = 0;
  if constexpr (kRegisters == 32)
    for (; c + 3 * kLanes<A> <= cp && c + 4 * kLanes<A> != cp; c += 3 * kLanes<A>) columns(Int<3>{}, c);
  for (; c + 2 * kLanes<A> <= cp; c += 2 * kLanes<A>) columns(Int<2>{}, c);
  for (; c < cp; c += kLanes<A>) columns(Int<1>{}, c);
}

// The zeros around rows [lo, hi), with those above the first row and below the last.
template <class A>
FD_INLINE void clear_around(const EvalState<A>& s, int64_t lo, int64_t hi) {
  const int64_t row = (s.w + 2 * s.pad) * s.cp, side = s.pad * s.cp;
  if (lo == 0) clear(s.padded, s.pad * row);
  for (int64_t r = lo; r < hi; ++r) {
    A* at = s.padded + (r + s.pad) * row;
    clear(at, side);
    clear(at + row - side, side);
  }
  if (hi == s.h) clear(s.padded + (s.h + s.pad) * row, s.pad * row);
}

template <class A>
void eval_fill(const EvalState<A>& s, const A* bias, int64_t lo, int64_t hi) {
  for (int64_t c = 0; c < s.cp; c += kLanes<A>) {
    const Vec<A> v = load<A>(bias + c);
    for (int64_t p = lo * s.w; p < hi * s.w; ++p) store(s.raw + p * s.cp + c, v);
  }
}

template <class A>
void eval_finish(const EvalState<A>& s, int64_t lo, int64_t hi) {
  if (!s.padded) return;
  clear_around(s, lo, hi);
  for (int64_t r = lo; r < hi; ++r) {
    const A* from = s.raw + r * s.w * s.cp;
    A* to = s.padded + ((r + s.pad) * (s.w + 2 * s.pad) + s.pad) * s.cp;
    for (int64_t i = 0; i < s.w * s.cp; i += kLanes<A>) store(to + i, relu<A>(load<A>(from + i)));
  }
}

template <class A, bool FULL, class T>
FD_INLINE void project_rows(const EvalInput<A, T>& in, const EvalState<A>& to, int64_t image, int64_t lo, int64_t hi, A* d) {
  const int64_t pieces = (in.channels + EvalScratch::kInner - 1) / EvalScratch::kInner, lanes = kLanes<A>;
  const int64_t piece = ((in.channels + pieces - 1) / pieces + lanes - 1) / lanes * lanes;
  eval_fill(to, in.bias, lo, hi);
  // Half as many pixels as elsewhere: with the weights of a piece they fit into the first-level cache.
  const int64_t step = (EvalScratch::rows(to.w) + 1) / 2, ahead = step * in.stride * in.x.sh;
  for (int64_t r = lo; r < hi; r += step) {
    const int64_t end = r + step < hi ? r + step : hi;
    A* out = to.raw + r * to.w * to.cp;
    for (int64_t part = 0; part < in.stride; ++part)
      for (int64_t k = 0; k < in.channels; k += piece) {
        const int64_t count = k + piece < in.channels ? piece : in.channels - k;
        A* pixel = d;
        for (int64_t row = r * in.stride + part; row < end * in.stride; row += in.stride)
          for (int64_t column = part; column < to.w * in.stride; column += in.stride, pixel += piece) {
            const bool inside = row < in.h && column < in.w;
            const T* x = in.x.data + image * in.x.sn + row * in.x.sh + column * in.x.sw + k;
            for (int64_t c = 0; c < count; c += lanes) {
              __builtin_prefetch(x + ahead + c);  // of the next strip
              store(pixel + c, inside ? relu<A>(load_channels<A, FULL>(x, c, count)) : Vec<A>{});
            }
          }
        multiply(d, (end - r) * to.w, piece, in.pw + (part * in.channels + k) * to.cp, count, to.cp,
                 [&](int64_t p, int64_t c, Vec<A> v) FD_LAMBDA {
                   A* o = out + p * to.cp + c;
                   store(o, load<A>(o) + v);
                 });
      }
  }
}

template <class A, class T>
void eval_project(const EvalInput<A, T>& in, const EvalState<A>& to, int64_t image, int64_t lo, int64_t hi, A* scratch) {
  if (in.channels % kLanes<A> == 0)
    project_rows<A, true>(in, to, image, lo, hi, scratch);
  else
    project_rows<A, false>(in, to, image, lo, hi, scratch);
}

// d = depthwise(source) of output rows [lo, hi), or a gather of pixels. Returns the elements from one pixel of d to the next.
template <class A>
FD_INLINE int64_t eval_depthwise(const EvalStage<A>& stage, const EvalState<A>& from, int64_t lo, int64_t hi, int64_t w, A* d) {
  const int64_t cp = from.cp, row = (from.w + 2 * from.pad) * cp, shift = from.pad - stage.pad;
  const A* in = from.padded + (lo * stage.stride + shift) * row + shift * cp;
  if (stage.kernel) {
    const auto run = stage.stride == 1 ? depthwise<A, 1, false>(stage.kernel, stage.dilation, cp)
                                       : depthwise<A, 2, false>(stage.kernel, stage.dilation, cp);
    run(in, row, stage.dw, d, w * cp, hi - lo, w, cp);
    return cp;
  }
  const int64_t step = stage.parts * from.c;
  for (int64_t r = 0; r < hi - lo; ++r)
    for (int64_t column = 0; column < w; ++column)
      for (int64_t part = 0; part < stage.parts; ++part, d += from.c) {  // the next one overwrites the padding
        const A* pixel = in + (stage.stride * r + part) * row + (stage.stride * column + part) * cp;
        for (int64_t c = 0; c < cp; c += kLanes<A>) store(d + c, load<A>(pixel + c));
      }
  return step;
}

// A stage of rows [lo, hi), `to` being its node, or where SEPARABLE the padded image that its second stage reads.
template <bool SEPARABLE, class A>
FD_INLINE void eval_stage(const EvalStage<A>& stage, const EvalState<A>& from, const EvalState<A>& to, int64_t lo, int64_t hi, A* d) {
  const int64_t cp = to.cp, w = to.w, row = (w + 2 * to.pad) * cp;
  for (int64_t r = lo, step = EvalScratch::rows(w); r < hi; r += step) {
    const int64_t end = r + step < hi ? r + step : hi, pixels = (end - r) * w;
    const int64_t pixel = eval_depthwise(stage, from, r, end, w, d);
    const auto product = [&](const auto& done) FD_LAMBDA { multiply(d, pixels, pixel, stage.pw, stage.parts * from.c, cp, done); };
    if constexpr (SEPARABLE) {
      A* out = to.padded + (r + to.pad) * row + to.pad * cp;
      const int64_t gap = row - w * cp;  // from the end of a row to the beginning of the next
      int64_t rows_before[EvalScratch::kPixels] = {};
      for (int64_t p = w; p < pixels; ++p) rows_before[p] = p / w;
      const bool one = end - r == 1;
      product([&](int64_t p, int64_t c, Vec<A> v) FD_LAMBDA {
        store(out + p * cp + c + (one ? 0 : rows_before[p] * gap), relu<A>(v + load<A>(stage.bias + c)));
      });
    } else {
      A* out = to.raw + r * w * cp;
      product([&](int64_t p, int64_t c, Vec<A> v) FD_LAMBDA {
        A* o = out + p * cp + c;
        store(o, load<A>(o) + v);
      });
    }
  }
}

// node += scale * pool(source), 3x3 with padding 1, clipped to the image.
template <bool MAX, class A>
FD_INLINE void eval_pool(const EvalOp<A>& op, const EvalState<A>& from, const EvalState<A>& node, int64_t lo, int64_t hi) {
  const int64_t cp = node.cp;
  for (int64_t r = lo; r < hi; ++r)
    for (int64_t column = 0; column < node.w; ++column) {
      const int64_t y = r * op.stride - 1, x = column * op.stride - 1;
      const int64_t top = y < 0 ? 0 : y, bottom = y + 3 < from.h ? y + 3 : from.h;
      const int64_t left = x < 0 ? 0 : x, right = x + 3 < from.w ? x + 3 : from.w;
      const A share = MAX ? A(1) : A(1) / A((bottom - top) * (right - left));
      A* out = node.raw + (r * node.w + column) * cp;
      for (int64_t c = 0; c < cp; c += kLanes<A>) {
        const auto at = [&](int64_t i, int64_t j) FD_LAMBDA { return load<A>(from.raw + (i * from.w + j) * cp + c); };
        Vec<A> pooled = MAX ? at(top, left) : Vec<A>{};
        for (int64_t i = top; i < bottom; ++i)
          for (int64_t j = left; j < right; ++j) pooled = MAX ? larger<A>(at(i, j), pooled) : pooled + at(i, j);
        store(out + c, load<A>(out + c) + load<A>(op.scale + c) * (pooled * share));
      }
    }
}

template <class A>
void eval_first(const EvalOp<A>& op, const EvalState<A>& source, const EvalState<A>& to, int64_t lo, int64_t hi, A* scratch) {
  switch (op.kind) {
    case EvalKind::convolution:
      if (!op.separable) return eval_stage<false>(op.first, source, to, lo, hi, scratch);
      clear_around(to, lo, hi);
      return eval_stage<true>(op.first, source, to, lo, hi, scratch);
    case EvalKind::max_pool:
      return eval_pool<true>(op, source, to, lo, hi);
    case EvalKind::avg_pool:
      return eval_pool<false>(op, source, to, lo, hi);
    case EvalKind::skip:
      for (int64_t i = lo * to.w * to.cp; i < hi * to.w * to.cp; i += kLanes<A>)
        store(to.raw + i, load<A>(to.raw + i) + load<A>(source.raw + i));
  }
}

template <class A>
void eval_second(const EvalOp<A>& op, const EvalState<A>& middle, const EvalState<A>& node, int64_t lo, int64_t hi, A* scratch) {
  eval_stage<false>(op.second, middle, node, lo, hi, scratch);
}

// Rows of states side by side. A row is put together in the scratch, so that whole lines may go past the caches.
template <class A, class T>
void eval_store(const EvalState<A>* states, int64_t count, const View<T>& out, bool past_caches, int64_t image, int64_t lo, int64_t hi,
                A* scratch) {
  const int64_t c = states[0].c, cp = states[0].cp, w = states[0].w, line = 64 / int64_t(sizeof(T)), size = w * count * c;
  for (int64_t r = lo; r < hi; ++r) {
    T* to = out.data + image * out.sn + r * out.sh;
    const bool streams = past_caches && out.sw == count * c && size % line == 0 && reinterpret_cast<uintptr_t>(to) % 64 == 0;
    T* const first = streams ? reinterpret_cast<T*>(scratch) : to;
    const int64_t step = streams ? count * c : out.sw;
    for (int64_t i = 0; i < count; ++i) {
      const A* from = states[i].raw + r * w * cp;
      T* pixel = first + i * c;
      for (int64_t column = 0; column < w; ++column, from += cp, pixel += step)
        for (int64_t j = 0; j < c; j += kLanes<A>) store_channels<A, false>(pixel, load<A>(from + j), j, c);
    }
    if (!streams) continue;
    for (int64_t i = 0; i < size * int64_t(sizeof(T)) / int64_t(sizeof(A)); i += kLanes<A>)
      stream(reinterpret_cast<A*>(to) + i, load<A>(scratch + i));
  }
}

}  // namespace fastdarts::FASTDARTS_ISA
