// Few channels would leave most lanes of a vector empty. Where they fill at most half a cache line, f images stand side by side
// in its lanes, and what follows sees N / f images of f * c channels.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace fastdarts {

// f: the most images that divide N and fit a line of the type computed in; 1 leaves everything as it is.
int64_t images_in_line(at::ScalarType dtype, int64_t n, int64_t c);

// [N, parts * c, H, W] as [N / f, parts * f * c, H, W], channels dense: lane (image, channel) of each part; with groups > 1 only
// of each part's first c / groups channels. A tensor that is so already (f = 1) is not copied.
at::Tensor fold(const at::Tensor& x, int64_t parts, int64_t images, int64_t groups = 1);
// The way back, channels-last.
at::Tensor unfold(const at::Tensor& x, int64_t parts, int64_t images);

}  // namespace fastdarts
