#include "fold.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "block_cache.h"
#include "schedule.h"

namespace fastdarts {
namespace {

// Copies all of `single` into `folded`, or back. A row of one image's part at a time: its pixels lie equal steps apart in both.
template <bool kBack>
void copy(const at::Tensor& single, const at::Tensor& folded, int64_t parts, int64_t images) {
  const int64_t item = single.element_size(), n = folded.size(0), h = single.size(2), w = single.size(3);
  const int64_t part = single.size(1) / parts * item, piece = folded.size(1) / parts / images * item;
  const int64_t step = single.stride(3) * item, folded_step = folded.stride(3) * item;
  char *const ours = static_cast<char*>(single.data_ptr()), *const theirs = static_cast<char*>(folded.data_ptr());
  const auto rows = [&](auto bytes) {  // a compile-time number where it can be: then a pixel is one load and one store
    at::parallel_for(0, n * h, at::divup(n * h, at::get_num_threads()), [&, bytes](int64_t lo, int64_t hi) {
      for (int64_t row = lo; row < hi; ++row)
        for (int64_t lane = 0; lane < parts * images; ++lane) {
          const int64_t line = row / h, y = row % h, image = line * images + lane % images;
          char* a = ours + (image * single.stride(0) + y * single.stride(2)) * item + lane / images * part;
          char* b = theirs + (line * folded.stride(0) + y * folded.stride(2)) * item + lane * piece;
          for (int64_t x = 0; x < w; ++x, a += step, b += folded_step) std::memcpy(kBack ? a : b, kBack ? b : a, bytes);
        }
    });
  };
  switch (piece) {
    case 8:
      return rows(std::integral_constant<int64_t, 8>{});
    case 16:
      return rows(std::integral_constant<int64_t, 16>{});
    case 32:
      return rows(std::integral_constant<int64_t, 32>{});
    default:
      return rows(piece);
  }
}

}  // namespace

int64_t images_in_line(at::ScalarType dtype, int64_t n, int64_t c) {
  int64_t images = std::max<int64_t>(64 / int64_t(c10::elementSize(compute_type(dtype))) / c, 1);
  while (n % images) --images;
  return images;
}

at::Tensor fold(const at::Tensor& x, int64_t parts, int64_t images, int64_t groups) {
  const at::Tensor single = channels_last(x);
  if (images == 1 && groups == 1) return single;
  const at::Tensor folded =
      empty_image_in_block({x.size(0) / images, images * x.size(1) / groups, x.size(2), x.size(3)}, x.scalar_type());
  copy<false>(single, folded, parts, images);
  return folded;
}

at::Tensor unfold(const at::Tensor& x, int64_t parts, int64_t images) {
  if (images == 1) return x;
  const at::Tensor single = empty_image_in_block({x.size(0) * images, x.size(1) / images, x.size(2), x.size(3)}, x.scalar_type());
  copy<true>(single, x, parts, images);
  return single;
}

}  // namespace fastdarts
