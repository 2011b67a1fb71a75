// Products of bfloat16 in AMX's tile registers: 16 rows of 64 bytes, which are 16 float32, or 32 bfloat16 of one factor and 16
// pairs of them of the other.
#pragma once
#include "vectors.h"

namespace fastdarts::FASTDARTS_ISA {

constexpr int kTileRows = 16;             // also float32 in a row
constexpr int kTileDepth = 2 * kTileRows;  // bfloat16 in a row
// Registers: four of sums, then those of the factors: whole ones, and half as deep for the last 16 of an odd number of 16s.
constexpr int kSumTiles = 4;
constexpr int kLeft = 4, kRight = 5, kHalfLeft = 6, kHalfRight = 7;

// The tile registers are configured while one of these lives, in the thread that made it.
class ProductUnit {
 public:
  ProductUnit() {
    struct alignas(64) {
      uint8_t palette, start, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } shape = {1, 0, {}, {}, {}};
    for (int i = 0; i < 8; ++i) {
      shape.row_bytes[i] = i == kHalfLeft ? 32 : 64;
      shape.rows[i] = i == kHalfRight ? 8 : 16;
    }
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  ~ProductUnit() { asm volatile("tilerelease"); }
  ProductUnit(const ProductUnit&) = delete;
  ProductUnit& operator=(const ProductUnit&) = delete;
};

// Rows `step` bytes apart. The intrinsics of GCC 12 do not say that memory is read.
template <int TILE>
FD_INLINE void load_tile(const void* from, int64_t step) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(step), "i"(TILE) : "memory");
}
template <int TILE>
FD_INLINE void store_tile(void* to, int64_t step) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(step), "i"(TILE) : "memory");
}
template <int TILE>
FD_INLINE void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(TILE));
}
template <int SUM, int LEFT, int RIGHT>
FD_INLINE void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(LEFT), "i"(RIGHT));
}

// f(Int<0>{}), f(Int<1>{}), ..., f(Int<COUNT - 1>{})
template <int COUNT, int AT = 0, class F>
FD_INLINE void each(const F& f) {
  if constexpr (AT < COUNT) {
    f(Int<AT>{});
    each<COUNT, AT + 1>(f);
  }
}

// f(Int<columns>{}, Int<rows>{}, column) for columns of tiles, up to four at once, with as many rows as there are registers of sums.
template <class F>
FD_INLINE void over_tile_columns(int64_t tiles, const F& f) {
  int64_t at = 0;
  for (; at + 4 <= tiles; at += 4) f(Int<4>{}, Int<1>{}, at);
  if (tiles - at == 3) f(Int<3>{}, Int<1>{}, at);
  if (tiles - at == 2) f(Int<2>{}, Int<2>{}, at);
  if (tiles - at == 1) f(Int<1>{}, Int<4>{}, at);
}

// sums (+)= left * right: left [16 ROWS, depth] rows of `left_row` bytes, right [depth / 2, 16 COLUMNS] pairs, rows of `right_row`
// bytes; tiles of left below each other are `left_next` bytes apart.
template <int ROWS, int COLUMNS, int LEFT, int RIGHT>
FD_INLINE void add_products(const char* left, int64_t left_row, int64_t left_next, const char* right, int64_t right_row) {
  each<ROWS>([&](auto row) FD_LAMBDA {
    load_tile<LEFT>(left + row.value * left_next, left_row);
    each<COLUMNS>([&](auto column) FD_LAMBDA {
      if constexpr (COLUMNS > 1 || row.value == 0) load_tile<RIGHT>(right + column.value * 64, right_row);
      multiply_tiles<row.value * COLUMNS + column.value, LEFT, RIGHT>();
    });
  });
}

constexpr int kTileSize = kTileRows * kTileRows;

// visit(p, pixels, column, Int<tiles>{}, y) for rows of tiles of y = a * b: a [pixels, k], which is read up to whole tiles of
// pixels; b [k / 2, columns] pairs; y [tiles, 16, 16] of at most 16 pixels from p and channels from `column`.
template <class F>
FD_INLINE void product_in_tiles(const void* a, int64_t pixels, int64_t k, const uint32_t* b, int64_t columns, const F& visit) {
  const int64_t row_bytes = 2 * k, column_bytes = 4 * columns, deep = k / kTileDepth * kTileDepth;
  alignas(64) float y[kSumTiles * kTileSize];
  over_tile_columns(columns / kTileRows, [&](auto columns_at_once, auto rows_at_once, int64_t column) FD_LAMBDA {
    constexpr int COLUMNS = columns_at_once.value;
    exact_blocks<rows_at_once.value>((pixels + kTileRows - 1) / kTileRows, [&](auto size, int64_t row) FD_LAMBDA {
      constexpr int ROWS = size.value;
      const char* left = static_cast<const char*>(a) + row * kTileRows * row_bytes;
      const char* right = reinterpret_cast<const char*>(b) + column * 64;
      each<ROWS * COLUMNS>([&](auto tile) FD_LAMBDA { clear_tile<tile.value>(); });
      for (int64_t at = 0; at < deep; at += kTileDepth)
        add_products<ROWS, COLUMNS, kLeft, kRight>(left + 2 * at, row_bytes, kTileRows * row_bytes, right + at / 2 * column_bytes,
                                                   column_bytes);
      if (deep < k)
        add_products<ROWS, COLUMNS, kHalfLeft, kHalfRight>(left + 2 * deep, row_bytes, kTileRows * row_bytes,
                                                           right + deep / 2 * column_bytes, column_bytes);
      each<ROWS * COLUMNS>([&](auto tile) FD_LAMBDA { store_tile<tile.value>(y + tile.value * kTileSize, 64); });
      for (int i = 0; i < ROWS; ++i) {
        const int64_t p = (row + i) * kTileRows, rest = pixels - p;
        visit(p, rest < kTileRows ? rest : kTileRows, column * kTileRows, columns_at_once, y + i * COLUMNS * kTileSize);
      }
    });
  });
}

// Rounds y to bfloat16, stores it to out and, unless null, to soon, both a pixel's 16 or 32 channels [pixels, cp], and adds to the
// sums of `sum_strip`. y: one tile, or two with TWO. LINES: two vectors of y fill a line of out, which goes past the caches.
template <bool TWO, bool LINES>
FD_INLINE void store_summed(const float* y, int64_t pixels, int64_t cp, float* sums, bf16* out, bf16* soon) {
  typedef Vec<float> V;
  const int64_t step = TWO ? 1 : 2, second = TWO ? kTileRows : cp;
  const V origin[2] = {load<float>(sums), load<float>(sums + (TWO ? kTileRows : 0))};
  V sum[2] = {}, square[2] = {};
  const auto add = [&](int i, __m256i stored) FD_LAMBDA {
    const V v = (V)(widen((Halves)stored) << 16) - origin[i];
    sum[i] += v;
    square[i] += v * v;
  };
  int64_t p = 0;
  for (; p + step <= pixels; p += step) {
    const float* at = y + p * kTileRows;
    const __m512i both = narrow_two(load<float>(at), load<float>(at + (TWO ? kTileSize : kTileRows)));
    const __m256i halves[2] = {_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64(both, 1)};
    const auto store_both = [&](bf16* to) FD_LAMBDA {
      _mm256_storeu_si256((__m256i*)(to + p * cp), halves[0]);
      _mm256_storeu_si256((__m256i*)(to + p * cp + second), halves[1]);
    };
    if constexpr (LINES)
      _mm512_stream_si512((__m512i*)(out + p * cp), both);
    else
      store_both(out);
    if (soon) store_both(soon);
    add(0, halves[0]);
    add(1, halves[1]);
  }
  if (p < pixels) {  // the last of an odd number
    const Halves last = narrow(load<float>(y + p * kTileRows));
    *reinterpret_cast<LooseHalves*>(out + p * cp) = last;
    if (soon) *reinterpret_cast<LooseHalves*>(soon + p * cp) = last;
    add(0, (__m256i)last);
  }
  const auto give = [&](float* to, V v) FD_LAMBDA { store(to, load<float>(to) + v); };
  give(sums + cp, TWO ? sum[0] : sum[0] + sum[1]);
  give(sums + 2 * cp, TWO ? square[0] : square[0] + square[1]);
  if constexpr (!TWO) return;
  give(sums + cp + kTileRows, sum[1]);
  give(sums + 2 * cp + kTileRows, square[1]);
}

// A square of 16 x 16 pairs, its rows to its columns.
FD_INLINE void transpose(__m512i (&rows)[kTileRows]) {
  __m512i pairs[kTileRows], fours[kTileRows];
  FD_UNROLL
  for (int i = 0; i < kTileRows; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  FD_UNROLL
  for (int i = 0; i < kTileRows; i += 4) {  // fours[i + j]: of rows i to i + 3 column 4 l + j in the l-th 128 bits
    fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
  FD_UNROLL
  for (int j = 0; j < 4; ++j) {
    const __m512i even_top = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0x88);
    const __m512i even_bottom = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0x88);
    const __m512i odd_top = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0xdd);
    const __m512i odd_bottom = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0xdd);
    rows[j] = _mm512_shuffle_i32x4(even_top, even_bottom, 0x88);
    rows[8 + j] = _mm512_shuffle_i32x4(even_top, even_bottom, 0xdd);
    rows[4 + j] = _mm512_shuffle_i32x4(odd_top, odd_bottom, 0x88);
    rows[12 + j] = _mm512_shuffle_i32x4(odd_top, odd_bottom, 0xdd);
  }
}

// from [pixels, k] to [pixels rounded up to 32 / 32, k, 32] bfloat16, with zeros behind the last pixel.
FD_INLINE void turn_pixels(const float* from, int64_t pixels, int64_t k, float* to) {
  const __m512i interleaved = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20,
                                               4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (int64_t p = 0; p < pixels; p += kTileDepth, to += kTileRows * k)
    for (int64_t c = 0; c < k; c += kTileRows) {
      const auto pixel = [&](int64_t i) FD_LAMBDA { return i < pixels ? load<float>(from + i * k + c) : Vec<float>{}; };
      __m512i square[kTileRows];
      FD_UNROLL
      for (int i = 0; i < kTileRows; ++i)
        square[i] = _mm512_permutexvar_epi16(interleaved, narrow_two(pixel(p + 2 * i), pixel(p + 2 * i + 1)));
      transpose(square);
      FD_UNROLL
      for (int i = 0; i < kTileRows; ++i) _mm512_storeu_si512(to + (c + i) * kTileRows, square[i]);
    }
}

// dw [k, columns] += turned^T * pairs: `turned` as turn_pixels leaves it, pairs [blocks * 16, columns] along pixels.
FD_INLINE void add_outer_products(const float* turned, const float* pairs, int64_t blocks, int64_t k, int64_t columns, float* dw) {
  over_tile_columns(columns / kTileRows, [&](auto columns_at_once, auto rows_at_once, int64_t column) FD_LAMBDA {
    constexpr int COLUMNS = columns_at_once.value;
    exact_blocks<rows_at_once.value>(k / kTileRows, [&](auto size, int64_t row) FD_LAMBDA {
      constexpr int ROWS = size.value;
      float* corner = dw + row * kTileRows * columns + column * kTileRows;
      const auto sums = [&](auto tile) FD_LAMBDA {
        return corner + tile.value / COLUMNS * kTileRows * columns + tile.value % COLUMNS * kTileRows;
      };
      each<ROWS * COLUMNS>([&](auto tile) FD_LAMBDA { load_tile<tile.value>(sums(tile), 4 * columns); });
      for (int64_t block = 0; block < blocks; ++block)
        add_products<ROWS, COLUMNS, kLeft, kRight>(
            reinterpret_cast<const char*>(turned + (block * k + row * kTileRows) * kTileRows), 64, 64 * kTileRows,
            reinterpret_cast<const char*>(pairs + (block * columns + column) * kTileRows), 4 * columns);
      each<ROWS * COLUMNS>([&](auto tile) FD_LAMBDA { store_tile<tile.value>(sums(tile), 4 * columns); });
    });
  });
}

}  // namespace fastdarts::FASTDARTS_ISA
