// The arithmetic of partial channels (../bypass.h). A row of pixels of one image at a time: its sums stand in the first-level
// cache, `padded` numbers a pixel, the channels that the ops see before the others.
#pragma once
#include "vectors.h"

namespace fastdarts::FASTDARTS_ISA {

// Lanes `from` to `to` only, the others 0.
template <class A, class T>
FD_INLINE Vec<A> load_between(const T* p, int64_t from, int64_t to) {
#if FASTDARTS_VECTOR_BYTES == 64
  const uint32_t lanes = (1u << to) - (1u << from);
  if constexpr (sizeof(T) == 8) return (Vec<A>)_mm512_maskz_loadu_pd(lanes, p);
  if constexpr (sizeof(T) == 4) return (Vec<A>)_mm512_maskz_loadu_ps(lanes, p);
  if constexpr (sizeof(T) == 2) return (Vec<A>)(widen((Halves)_mm256_maskz_loadu_epi16(lanes, p)) << 16);
#else
  if (from == 0 && to == kLanes<A>) return load<A>(p);
  if (from >= to) return Vec<A>{};
#if FASTDARTS_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i after = _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(from - 1));
    return (Vec<A>)_mm256_maskload_ps(p, _mm256_and_si256(after, _mm256_cmpgt_epi32(_mm256_set1_epi32(to), lane)));
  }
#endif
  T lanes[kLanes<A>] = {};
  for (int64_t i = from; i < to; ++i) lanes[i] = p[i];
  return load<A>(lanes);
#endif
}

// How many lanes of a vector that starts at channel c lie before channel `end`.
template <class A>
FD_INLINE int64_t lanes_before(int64_t end, int64_t c) {
  return end <= c ? 0 : end - c < kLanes<A> ? end - c : kLanes<A>;
}

template <class T>
FD_INLINE T* row_of(const View<T>& v, int64_t image, int64_t y) {
  return v.data + image * v.sn + y * v.sh;
}

// A row of one image; its channels that the ops see are some lanes of a line of several images.
struct PartialRow {
  int64_t image, line, lane, y;
};

// body(row) for rows [lo, hi) of lines, an image of a line after the other: then what comes next in a tensor is read next.
template <class A, class T, class F>
FD_INLINE void over_rows(const PartialRows<A, T>& p, int64_t lo, int64_t hi, const F& body) {
  for (int64_t row = lo, end; row < hi; row = end) {
    const int64_t line = row / p.h;
    end = (line + 1) * p.h < hi ? (line + 1) * p.h : hi;
    for (int64_t i = 0; i < p.images; ++i)
      for (int64_t y = row - line * p.h; y < end - line * p.h; ++y) body(PartialRow{line * p.images + i, line, i * p.size, y});
  }
}

// sums = first(pixel, channel)
template <class A, class T, class F>
FD_INLINE void fill_row(const PartialRows<A, T>& p, A* sums, const F& first) {
  for (int64_t c = 0; c < p.padded; c += kLanes<A>)
    for (int64_t x = 0; x < p.w; ++x) store(sums + x * p.padded + c, first(x, c));
}

// sums += a row of COUNT terms. DOT: factor_sums += the terms' products with what had passed. Each pixel is asked for a row ahead,
// as in all that reads nodes: side by side they lie too far apart for the processor to foresee.
template <class A, int COUNT, bool DOT, class T>
FD_INLINE void add_terms(const PartialRows<A, T>& p, const Passage<A, T>* terms, const PartialRow& row, A* sums,
                         double* factor_sums) {
  const T *passed = DOT ? row_of(p.passed, row.image, row.y) : nullptr, *from[COUNT];
  int64_t step[COUNT], ahead[COUNT];
  Vec<A> factor[COUNT];
  FD_UNROLL
  for (int t = 0; t < COUNT; ++t) {
    from[t] = row_of(terms[t].view, row.image, row.y);
    step[t] = terms[t].view.sw;
    ahead[t] = terms[t].view.sh;
    factor[t] = Vec<A>{} + terms[t].factor;
  }
  for (int64_t c = p.size / kLanes<A> * kLanes<A>; c < p.channels; c += kLanes<A>) {
    const int64_t first = lanes_before<A>(p.size, c), end = lanes_before<A>(p.channels, c), at = c - p.size;
    Vec<A> dots[COUNT];
    FD_UNROLL
    for (int t = 0; t < COUNT; ++t) dots[t] = Vec<A>{};
    for (int64_t x = 0; x < p.w; ++x) {
      A* pixel = sums + x * p.padded + c;
      Vec<A> sum = load<A>(pixel), with;
      if constexpr (DOT) with = load_between<A>(passed + x * p.passed.sw + at, first, end);
      if constexpr (DOT) __builtin_prefetch(passed + x * p.passed.sw + at + p.passed.sh);
      FD_UNROLL
      for (int t = 0; t < COUNT; ++t) {
        const Vec<A> v = load_between<A>(from[t] + x * step[t] + at, first, end);
        __builtin_prefetch(from[t] + x * step[t] + at + ahead[t]);
        sum += factor[t] * v;
        if constexpr (DOT) dots[t] += v * with;
      }
      store(pixel, sum);
    }
    if constexpr (DOT) {
      FD_UNROLL
      for (int t = 0; t < COUNT; ++t) add_lanes<A>(factor_sums + terms[t].edge * kFactorLanes, dots[t]);
    }
  }
}

template <bool DOT, class A, class T>
FD_INLINE void add_all_terms(const PartialRows<A, T>& p, const PartialRow& row, A* sums, double* factor_sums) {
  exact_blocks<4>(p.count, [&](auto size, int64_t t) FD_LAMBDA {
    add_terms<A, size.value, DOT>(p, p.terms + t, row, sums, factor_sums);
  });
}

// to[j, i] = from[i, j], 4x4.
template <class A>
FD_INLINE void transpose_block(const A* from, int64_t from_step, A* to, int64_t to_step) {
  typedef A Quad __attribute__((vector_size(4 * sizeof(A))));
  typedef A Loose __attribute__((vector_size(4 * sizeof(A)), aligned(sizeof(A))));
  const auto row = [&](int64_t i) FD_LAMBDA { return (Quad) * reinterpret_cast<const Loose*>(from + i * from_step); };
  const Quad a = row(0), b = row(1), c = row(2), d = row(3);
  const Quad ac0{a[0], c[0], a[1], c[1]}, ac2{a[2], c[2], a[3], c[3]}, bd0{b[0], d[0], b[1], d[1]}, bd2{b[2], d[2], b[3], d[3]};
  const auto put = [&](int64_t j, const Quad& v) FD_LAMBDA { *reinterpret_cast<Loose*>(to + j * to_step) = v; };
  put(0, Quad{ac0[0], bd0[0], ac0[1], bd0[1]});
  put(1, Quad{ac0[2], bd0[2], ac0[3], bd0[3]});
  put(2, Quad{ac2[0], bd2[0], ac2[1], bd2[1]});
  put(3, Quad{ac2[2], bd2[2], ac2[3], bd2[3]});
}

// The shuffle, and its way back: every pixel's matrix [rows, columns] transposed.
template <class A, class T>
FD_INLINE void transpose_row(const PartialRows<A, T>& p, const A* from, int64_t rows, int64_t columns, A* to) {
  const bool blocks = rows % 4 == 0 && columns % 4 == 0;
  for (int64_t x = 0; x < p.w; ++x, from += p.padded, to += p.padded)
    if (blocks)
      for (int64_t i = 0; i < rows; i += 4)
        for (int64_t j = 0; j < columns; j += 4) transpose_block(from + i * columns + j, columns, to + j * rows + i, rows);
    else
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) to[j * rows + i] = from[i * columns + j];
}

// Writes `channels` of a row's pixels, past the caches where they are whole lines that are not read `soon`. Overwrites `from` where
// it is not `kept`.
template <class A, class T>
FD_INLINE void write_row(const PartialRows<A, T>& p, A* from, T* to, int64_t step, int64_t channels, bool soon,
                         bool kept = false) {
  int64_t pixels = p.w;
  if (step == channels && channels < p.padded && !kept) {  // without gaps, as one large pixel
    for (int64_t x = 0; x < p.w; ++x)
      for (int64_t c = 0; c < channels; c += kLanes<A>) store(from + x * channels + c, load<A>(from + x * p.padded + c));
    channels *= p.w;
    pixels = 1;
  }
  const uintptr_t places = reinterpret_cast<uintptr_t>(to) | (pixels > 1 ? step : 0) * sizeof(T) | channels * sizeof(T);
  const bool lines = !soon && places % 64 == 0;
  for (int64_t x = 0; x < pixels; ++x, from += p.padded, to += step)
    for (int64_t c = 0; c < channels; c += kLanes<A>)
      if (lines)
        stream(to + c, load<A>(from + c));
      else
        store_channels<A, false>(to, load<A>(from + c), c, channels);
}

// Forward: the sum of what passes a node's edges, shuffled with what its ops made.
template <class A, class T>
void join(const PartialRows<A, T>& rows, int64_t lo, int64_t hi, A* sums, double*) {
  const PartialRows<A, T> p = rows;
  A* shuffled = sums + p.w * p.padded;
  over_rows(p, lo, hi, [&](const PartialRow& row) FD_LAMBDA {
    T* own = row_of(p.own, row.line, row.y) + row.lane;
    fill_row(p, sums, [&](int64_t x, int64_t c) FD_LAMBDA {
      __builtin_prefetch(own + x * p.own.sw + c + p.own.sh);
      return load_between<A>(own + x * p.own.sw + c, 0, lanes_before<A>(p.size, c));
    });
    add_all_terms<false>(p, row, sums, nullptr);
    transpose_row(p, sums, p.groups, p.size, shuffled);
    write_row(p, shuffled, row_of(p.to, row.image, row.y), p.to.sw, p.channels, false, true);
    write_row(p, shuffled, own, p.own.sw, p.size, true);
  });
}

// A node's gradient, from outside, from the ops and from what passed on, parted into what goes to its ops and what passes them by.
template <class A, class T>
void part_node(const PartialRows<A, T>& rows, int64_t lo, int64_t hi, A* sums, double* factor_sums) {
  const PartialRows<A, T> p = rows;
  A* parted = sums + p.w * p.padded;
  over_rows(p, lo, hi, [&](const PartialRow& row) FD_LAMBDA {
    T* own = row_of(p.own, row.line, row.y) + row.lane;
    const T* outer = row_of(p.whole, row.image, row.y);
    fill_row(p, sums, [&](int64_t x, int64_t c) FD_LAMBDA {
      const Vec<A> v = load_channels<A, false>(outer + x * p.whole.sw, c, p.channels);
      __builtin_prefetch(outer + x * p.whole.sw + c + p.whole.sh);
      __builtin_prefetch(own + x * p.own.sw + c + p.own.sh);
      return p.reached ? v + load_between<A>(own + x * p.own.sw + c, 0, lanes_before<A>(p.size, c)) : v;
    });
    add_all_terms<true>(p, row, sums, factor_sums);
    transpose_row(p, sums, p.size, p.groups, parted);
    write_row(p, parted, own, p.own.sw, p.size, true, true);
    write_row(p, parted + p.size, row_of(p.to, row.image, row.y), p.to.sw, p.channels - p.size, false);
  });
}

// body(row, column) for the pixels of a state that belong to a node's pixel: a window of 2x2 as far as the state has them.
template <class A, class T, class F>
FD_INLINE void over_window(const PartialRows<A, T>& p, int64_t y, int64_t x, const F& body) {
  for (int64_t row = p.step * y; row < p.step * (y + 1) && row < p.state_h; ++row)
    for (int64_t column = p.step * x; column < p.step * (x + 1) && column < p.state_w; ++column) body(row, column);
}

// The channels of a larger state that pass: the maximum of each window.
template <class A, class T>
void pool_passing(const PartialRows<A, T>& rows, int64_t lo, int64_t hi, A*, double*) {
  const PartialRows<A, T> p = rows;
  const int64_t rest = p.channels - p.size;
  over_rows(p, lo, hi, [&](const PartialRow& at) FD_LAMBDA {
    for (int64_t x = 0; x < p.w; ++x)
      for (int64_t c = 0; c < rest; c += kLanes<A>) {
        const auto pixel = [&](int64_t row, int64_t column) FD_LAMBDA {
          return load_channels<A, false>(row_of(p.whole, at.image, row) + column * p.whole.sw + p.size, c, rest);
        };
        Vec<A> most = pixel(p.step * at.y, p.step * x);
        over_window(p, at.y, x, [&](int64_t row, int64_t column) FD_LAMBDA {
          most = larger<A>(pixel(row, column), most);
        });
        store_channels<A, false>(row_of(p.to, at.image, at.y) + x * p.to.sw, most, c, rest);
      }
  });
}

// An input's gradient: from the ops, and from what passed to the first pixel of each window that has the maximum.
template <class A, class T>
void part_input(const PartialRows<A, T>& rows, int64_t lo, int64_t hi, A* sums, double* factor_sums) {
  const PartialRows<A, T> p = rows;
  over_rows(p, lo, hi, [&](const PartialRow& at) FD_LAMBDA {
    const auto own = [&](int64_t row, int64_t column, int64_t c) FD_LAMBDA {
      const T* pixel = row_of(p.own, at.line, row) + column * p.own.sw + at.lane;
      return p.reached ? load_between<A>(pixel + c, 0, lanes_before<A>(p.size, c)) : Vec<A>{};
    };
    fill_row(p, sums, [&](int64_t x, int64_t c) FD_LAMBDA { return p.step == 1 ? own(at.y, x, c) : Vec<A>{}; });
    add_all_terms<true>(p, at, sums, factor_sums);
    if (!p.to.data) return;
    if (p.step == 1) return write_row(p, sums, row_of(p.to, at.image, at.y), p.to.sw, p.channels, false);
    const T* passed = row_of(p.passed, at.image, at.y) - p.size;
    for (int64_t x = 0; x < p.w; ++x)
      for (int64_t c = 0; c < p.channels; c += kLanes<A>) {
        Vec<A> left = load<A>(sums + x * p.padded + c);
        const int64_t first = lanes_before<A>(p.size, c), end = lanes_before<A>(p.channels, c);
        const Vec<A> most = load_between<A>(passed + x * p.passed.sw + c, first, end);
        over_window(p, at.y, x, [&](int64_t row, int64_t column) FD_LAMBDA {
          const Vec<A> v = load_channels<A, false>(row_of(p.whole, at.image, row) + column * p.whole.sw, c, p.channels);
          const auto here = (v == most) | (v != v);
          T* d = row_of(p.to, at.image, row) + column * p.to.sw;
          store_channels<A, false>(d, (here ? left : Vec<A>{}) + own(row, column, c), c, p.channels);
          left = here ? Vec<A>{} : left;
        });
      }
  });
}

}  // namespace fastdarts::FASTDARTS_ISA
