// Max and average pooling of a state, forward and backward.
#pragma once
#include "layout.h"
#include "moments.h"

namespace fastdarts::FASTDARTS_ISA {

struct Window {
  int64_t row_begin, row_end, column_begin, column_end;
};

FD_INLINE Window window_at(const Geometry& g, int64_t r, int64_t column) {  // 3x3, padding 1, clipped to the image
  const int64_t top = r * g.stride - 1, left = column * g.stride - 1;
  return {top < 0 ? 0 : top, top + 3 < g.h ? top + 3 : g.h, left < 0 ? 0 : left, left + 3 < g.w ? left + 3 : g.w};
}

template <class A, class T>
FD_INLINE void store_pool(T* out, const A* y, int64_t pixels, int64_t cp, int64_t before, A* sums, double* mean, double* m2) {
  sum_strip<T>(y, pixels, cp, sums, [&](int64_t i, Vec<A> v) FD_LAMBDA { stream(out + i, v); });
  join_moments(sums, pixels, cp, before, mean, m2);
}

// Largest and sum of a source row's three columns around each output's; the rows of `windows` lie wo * cp apart.
template <class A, bool FULL, class T>
FD_INLINE void pool_row(const Bank<A, T>& bank, const T* row, A* largest, A* sum) {
  const Geometry& g = bank.geo;
  const int64_t sw = bank.x.sw;
  for (int64_t column = 0; column < g.wo; ++column, largest += g.cp, sum += g.cp) {
    const int64_t left = column * g.stride - 1, end = left + 3 < g.w ? left + 3 : g.w, begin = left < 0 ? 0 : left;
    for (int64_t c = 0; c < g.cp; c += kLanes<A>) {
      Vec<A> most = load_channels<A, FULL>(row + begin * sw, c, g.c), total = most;
      for (int64_t col = begin + 1; col < end; ++col) {
        const Vec<A> v = load_channels<A, FULL>(row + col * sw, c, g.c);
        most = larger<A>(v, most);
        total += v;
      }
      store(largest + c, most);
      store(sum + c, total);
    }
  }
}

template <class A, bool FULL, class T>
FD_INLINE void pool_forward(const Bank<A, T>& bank, const Tile& tile, int64_t chunk, int64_t before, const Scratch<A>& s) {
  const Geometry g = bank.geo;
  const Pools<A, T>& pools = bank.pools;
  const T* image = bank.x.data + tile.image * bank.x.sn;
  const int64_t pixels = (tile.end - tile.begin) * g.wo, line = g.wo * g.cp;
  A *max_y = s.d, *avg_y = s.dy;
  const auto largest = [&](int64_t row) FD_LAMBDA { return s.windows + row % 3 * 2 * line; };
  const auto sum = [&](int64_t row) FD_LAMBDA { return largest(row) + line; };
  int64_t known = 0;  // source rows before this one are in `windows`, or no longer needed
  for (int64_t r = tile.begin; r < tile.end; ++r) {
    const int64_t at = (r - tile.begin) * line;
    const Window rows = window_at(g, r, 0);
    for (int64_t row = rows.row_begin > known ? rows.row_begin : known; row < rows.row_end; ++row)
      pool_row<A, FULL>(bank, image + row * bank.x.sh, largest(row), sum(row));
    known = rows.row_end;
    for (int64_t column = 0; column < g.wo; ++column) {
      const Window win = window_at(g, r, column);
      const A share = A(1) / A((win.row_end - win.row_begin) * (win.column_end - win.column_begin));
      for (int64_t i = column * g.cp; i < (column + 1) * g.cp; i += kLanes<A>) {
        Vec<A> most = load<A>(largest(win.row_begin) + i), total = load<A>(sum(win.row_begin) + i);
        for (int64_t row = win.row_begin + 1; row < win.row_end; ++row) {
          most = larger<A>(load<A>(largest(row) + i), most);
          total += load<A>(sum(row) + i);
        }
        store(max_y + at + i, most);
        store(avg_y + at + i, total * share);
      }
    }
  }
  const int64_t at = (tile.image * g.ho + tile.begin) * line, moments = chunk * g.cp;
  if (pools.max_y)
    store_pool(pools.max_y + at, max_y, pixels, g.cp, before, s.sums, pools.max_mean + moments, pools.max_m2 + moments);
  if (pools.avg_y)
    store_pool(pools.avg_y + at, avg_y, pixels, g.cp, before, s.sums, pools.avg_mean + moments, pools.avg_m2 + moments);
}

// d pooled = sum_j from_g[j] * g_j + from_y * (y - mean) + offset for one row of outputs, of both pools: max's, then avg's.
template <class A, bool FULL, class T>
FD_INLINE void pool_row_gradients(const Geometry& g, const Pools<A, T>& pools, int64_t image, int64_t r, A* rows) {
  struct Pool {
    const T* y;
    const A *from_g, *mean, *from_y, *offset;
    A* out;
  };
  const int64_t at = (image * g.ho + r) * g.wo * g.cp;
  const Pool both[2] = {{pools.max_y, pools.max_from_g, pools.max_mean_a, pools.max_from_y, pools.max_offset, rows},
                        {pools.avg_y, pools.avg_from_g, pools.avg_mean_a, pools.avg_from_y, pools.avg_offset, rows + g.wo * g.cp}};
  for (int64_t c = 0; c < g.cp; c += kLanes<A>)
    for (int64_t column = 0; column < g.wo; ++column) {
      const int64_t pixel = column * g.cp + c;
      Vec<A> d[2] = {};
      FD_UNROLL
      for (int i = 0; i < 2; ++i) {
        const Pool& p = both[i];
        if (p.y) d[i] = load<A>(p.from_y + c) * (load<A>(p.y + at + pixel) - load<A>(p.mean + c)) + load<A>(p.offset + c);
      }
      for (int64_t e = 0; e < pools.edges; ++e) {
        const View<T>& v = pools.g[e];
        Vec<A> gradient = load_channels<A, FULL>(v.data + image * v.sn + r * v.sh + column * v.sw, c, g.c);
        if (pools.factors[e]) gradient *= load<A>(pools.factors[e] + image * g.cp + c);
        FD_UNROLL
        for (int i = 0; i < 2; ++i)
          if (both[i].y) d[i] += load<A>(both[i].from_g + e * g.cp + c) * gradient;
      }
      FD_UNROLL
      for (int i = 0; i < 2; ++i) store(both[i].out + pixel, d[i]);
    }
}

// The gradients of one window's pools, handed out to its pixels in order.
template <class A>
struct PoolGradients {
  Vec<A> avg, max, largest;  // avg: each pixel's share; max: until a pixel has taken it
  FD_INLINE Vec<A> pixel(Vec<A> value) {
    // The gradient of a maximum goes to the first of equal values, or to NaN; it may lie in rows of another tile.
    const auto here = (value >= largest) | (value != value);
    const Vec<A> taken = here ? max : Vec<A>{};
    max = here ? Vec<A>{} : max;
    return avg + taken;
  }
};

// Adds the pools' input gradients to dx, source rows [begin, end) of one image; `rows` holds two rows of outputs.
template <class A, bool FULL, class T>
FD_INLINE void pool_backward(const Bank<A, T>& bank, int64_t image, int64_t begin, int64_t end, A* rows, A* dx) {
  const Geometry g = bank.geo;
  const Pools<A, T>& pools = bank.pools;
  const T* x = bank.x.data + image * bank.x.sn;
  const int64_t sh = bank.x.sh, sw = bank.x.sw;
  const A *d_max_row = rows, *d_avg_row = rows + g.wo * g.cp;
  // Windows that touch source rows [begin, end): centre stride * r within one row of them.
  const int64_t r_begin = begin - 1 <= 0 ? 0 : (begin - 1 + g.stride - 1) / g.stride;
  const int64_t r_end = end / g.stride + 1 < g.ho ? end / g.stride + 1 : g.ho;
  for (int64_t r = r_begin; r < r_end; ++r) {
    const int64_t at = (image * g.ho + r) * g.wo * g.cp;
    pool_row_gradients<A, FULL>(g, pools, image, r, rows);
    // Windows inside the image share pixels' values and gradients, which stay in registers from one to the next.
    const int64_t inside_begin = 1, inside_end = (g.w - 2) / g.stride + 1;
    const bool whole_rows = r * g.stride >= 1 && r * g.stride + 2 <= g.h;
    for (int64_t c = 0; c < g.cp; c += kLanes<A>) {
      const auto gradients = [&](int64_t column) FD_LAMBDA {
        const int64_t o = column * g.cp + c;
        return PoolGradients<A>{load<A>(d_avg_row + o), load<A>(d_max_row + o),
                                pools.max_y ? load<A>(pools.max_y + at + o) : Vec<A>{}};
      };
      const auto add = [&](int64_t row, int64_t col, Vec<A> v) FD_LAMBDA {
        if (row < begin || row >= end) return;
        A* to = dx + ((row - begin) * g.w + col) * g.cp + c;
        store(to, load<A>(to) + v);
      };
      const auto value = [&](int64_t row, int64_t col) FD_LAMBDA {
        return load_channels<A, FULL>(x + row * sh + col * sw, c, g.c);
      };
      const auto clipped = [&](int64_t column) FD_LAMBDA {
        const Window win = window_at(g, r, column);
        PoolGradients<A> d = gradients(column);
        d.avg *= A(1) / A((win.row_end - win.row_begin) * (win.column_end - win.column_begin));
        for (int64_t row = win.row_begin; row < win.row_end; ++row)
          for (int64_t col = win.column_begin; col < win.column_end; ++col) add(row, col, d.pixel(value(row, col)));
      };
      int64_t column = 0;
      for (; column < g.wo && (!whole_rows || column < inside_begin); ++column) clipped(column);
      if (column < inside_end) {
        const int64_t top = r * g.stride - 1;
        Vec<A> values[3][3], sums[3][3];
        FD_UNROLL
        for (int i = 0; i < 9; ++i) {
          values[i / 3][i % 3] = value(top + i / 3, column * g.stride - 1 + i % 3);
          sums[i / 3][i % 3] = Vec<A>{};
        }
        for (; column < inside_end; ++column) {
          PoolGradients<A> d = gradients(column);
          d.avg *= A(1) / A(9);
          FD_UNROLL
          for (int i = 0; i < 9; ++i) sums[i / 3][i % 3] += d.pixel(values[i / 3][i % 3]);
          for (int64_t step = 0; step < g.stride; ++step) {  // to the next window
            const int64_t leaves = column * g.stride - 1 + step, enters = leaves + 3;
            FD_UNROLL
            for (int y = 0; y < 3; ++y) {
              add(top + y, leaves, sums[y][0]);
              sums[y][0] = sums[y][1];
              sums[y][1] = sums[y][2];
              sums[y][2] = Vec<A>{};
              values[y][0] = values[y][1];
              values[y][1] = values[y][2];
              values[y][2] = enters < g.w ? value(top + y, enters) : Vec<A>{};
            }
          }
        }
        const int64_t left = column * g.stride - 1;
        FD_UNROLL
        for (int i = 0; i < 6; ++i)
          if (left + i % 2 < g.w) add(top + i / 2, left + i % 2, sums[i / 2][i % 2]);
      }
      for (; column < g.wo; ++column) clipped(column);
    }
  }
}

}  // namespace fastdarts::FASTDARTS_ISA
