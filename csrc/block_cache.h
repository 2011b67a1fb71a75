// Large blocks of memory that are kept and reused: a search step asks for the same few sizes again and again, and on a CPU
// touching fresh pages costs as much as the arithmetic done on them.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace fastdarts {

// Uninitialised, 64-byte aligned; give back with release_block. Hardly more is kept than the most that was in use at once.
void* acquire_block(int64_t bytes);
void release_block(void* block);
// Frees every block not in use; returns the bytes freed.
int64_t empty_block_cache();

// A tensor in such a block, contiguous.
at::Tensor empty_in_block(at::IntArrayRef sizes, at::ScalarType dtype);
// The same for [N, C, H, W], channels-last.
at::Tensor empty_image_in_block(at::IntArrayRef sizes, at::ScalarType dtype);

// A block for the length of a scope.
template <class T>
class Block {
 public:
  explicit Block(int64_t count) : data_(static_cast<T*>(acquire_block(count * int64_t(sizeof(T))))) {}
  ~Block() { release_block(data_); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  T* data() const { return data_; }

 private:
  T* data_;
};

}  // namespace fastdarts
