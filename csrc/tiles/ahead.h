// What lies ahead: memory that a later phase reads, asked for while one computes.
#pragma once
#include "layout.h"

namespace fastdarts::FASTDARTS_ISA {

// Memory that the next phase reads, asked for a little at a time while this one computes.
class Ahead {
 public:
  // `count` pieces of `bytes`, `step` bytes apart.
  FD_INLINE void add(const void* data, int64_t count, int64_t bytes, int64_t step) {
    if (size_ == kMost) return;
    if (bytes == step) {
      bytes *= count;
      count = 1;
    }
    ranges_[size_++] = {static_cast<const char*>(data), count, bytes, step};
    lines_ += count * ((bytes + 63) / 64);
  }
  // Rows of a tile.
  template <class T>
  FD_INLINE void add(const View<T>& v, int64_t image, int64_t begin, int64_t end, int64_t columns, int64_t channels) {
    add(v.data + image * v.sn + begin * v.sh, (end - begin) * columns, channels * int64_t(sizeof(T)), v.sw * int64_t(sizeof(T)));
  }
  // From here on ask() is called so many times.
  FD_INLINE void over(int64_t times) { share_ = times ? (lines_ + times - 1) / times : 0; }
  FD_INLINE void ask() {
    for (int64_t i = 0; i < share_ && now_ < size_; ++i) {
      Range& r = ranges_[now_];
      __builtin_prefetch(r.data + offset_, 0, 3);
      offset_ += 64;
      if (offset_ < r.bytes) continue;
      offset_ = 0;
      r.data += r.step;
      if (--r.count == 0) ++now_;
    }
  }

 private:
  struct Range {
    const char* data;
    int64_t count, bytes, step;
  };
  static constexpr int64_t kMost = 16;
  Range ranges_[kMost];
  int64_t size_ = 0, now_ = 0, offset_ = 0, lines_ = 0, share_ = 0;
};

template <class A, class T>
FD_INLINE void ahead_source(Ahead& ahead, const Bank<A, T>& bank, const Tile& tile) {
  const Geometry& g = bank.geo;
  const int64_t begin = tile.begin * g.stride, end = tile.end * g.stride < g.h ? tile.end * g.stride : g.h;
  ahead.add(bank.x, tile.image, begin, end, g.w, g.c);
}

// Of a tensor [n, ho, wo, cp].
template <class T>
FD_INLINE void ahead_output(Ahead& ahead, const T* y, const Geometry& g, const Tile& tile) {
  const int64_t bytes = g.wo * g.cp * int64_t(sizeof(T));
  ahead.add(y + (tile.image * g.ho + tile.begin) * g.wo * g.cp, tile.end - tile.begin, bytes, bytes);
}

// The rows of dx that a tile adds to.
template <class A, class T>
FD_INLINE void ahead_dx(Ahead& ahead, const Bank<A, T>& bank, const Tile& tile) {
  const Geometry& g = bank.geo;
  const int64_t begin = tile.begin * g.stride, end = tile.end * g.stride < g.h ? tile.end * g.stride : g.h;
  const int64_t bytes = g.w * g.cp * int64_t(sizeof(A));
  if (bank.need_x && !bank.starts) ahead.add(bank.dx_partial + (tile.image * g.h + begin) * g.w * g.cp, end - begin, bytes, bytes);
}

// What second_backward reads for a separable branch, with its node's gradient if that is new.
template <class A, class T>
FD_INLINE void ahead_second(Ahead& ahead, const Branch<A, T>& branch, const Geometry& g, const Tile& tile, bool is_new_g) {
  if (is_new_g) ahead.add(branch.g, tile.image, tile.begin, tile.end, g.wo, g.c);
  ahead_output(ahead, branch.first.y, g, tile);
  ahead_output(ahead, branch.second.y, g, tile);
}

// What first_backward reads for a branch, with the state's part of it if the tile is new.
template <class A, class T>
FD_INLINE void ahead_first(Ahead& ahead, const Bank<A, T>& bank, const Branch<A, T>& branch, const Tile& tile, bool is_new) {
  const Geometry& g = bank.geo;
  if (is_new) {
    ahead_source(ahead, bank, tile);
    ahead_dx(ahead, bank, tile);
  }
  ahead_output(ahead, branch.first.y, g, tile);
  if (branch.separable)
    ahead_output(ahead, branch.dz, g, tile);
  else
    ahead.add(branch.g, tile.image, tile.begin, tile.end, g.wo, g.c);
}

// What first_backward reads after a tile's last branch, with the bank's last edge.
template <class A, class T>
FD_INLINE void ahead_finish(Ahead& ahead, const Bank<A, T>& bank, const Tile& tile) {
  const Geometry& g = bank.geo;
  const int64_t begin = tile.begin * g.stride, end = tile.end * g.stride < g.h ? tile.end * g.stride : g.h;
  if (bank.pools.max_y) ahead_output(ahead, bank.pools.max_y, g, tile);
  if (bank.pools.avg_y) ahead_output(ahead, bank.pools.avg_y, g, tile);
  if (bank.g_before.data) ahead.add(bank.g_before, tile.image, begin, end, g.w, g.c);
  for (int64_t e = 0; e < bank.pools.edges; ++e) ahead.add(bank.pools.g[e], tile.image, tile.begin, tile.end, g.wo, g.c);
}

}  // namespace fastdarts::FASTDARTS_ISA
