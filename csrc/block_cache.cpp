#include "block_cache.h"

#include <ATen/ops/from_blob.h>
#include <c10/util/strides.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastdarts {
namespace {

constexpr int64_t kPage = 2 << 20;  // blocks of at least this size start on huge pages
constexpr int64_t kUnit = kPage / 8;  // and have sizes of these: of the last huge page a part would lie idle
constexpr int64_t kLine = 64;
constexpr int64_t kSlack = 4;  // a quarter more than asked for serves too
constexpr int64_t kKept = 32;  // a 32nd more than the most in use at once is kept
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

struct Cache {
  std::mutex mutex;
  std::multimap<int64_t, void*> free;
  std::unordered_map<void*, int64_t> used;
  int64_t free_bytes = 0, used_bytes = 0, most_used = 0;

  void drop_smallest() {
    auto it = free.begin();
    std::free(it->second);
    free_bytes -= it->first;
    free.erase(it);
  }
};

Cache& cache();

Cache* new_cache() {
#if defined(__unix__) || defined(__APPLE__)
  // A child forked while another thread is in here finds the cache whole and its mutex free.
  pthread_atfork([] { cache().mutex.lock(); }, [] { cache().mutex.unlock(); }, [] { cache().mutex.unlock(); });
#endif
  return new Cache;
}

Cache& cache() {
  static Cache* instance = new_cache();  // outlives tensors released while the process ends
  return *instance;
}

}  // namespace

void* acquire_block(int64_t bytes) {
  if (kSanitized) {  // every block by itself and full of NaN: what is read before it is written or outside shows
    void* block = nullptr;
    TORCH_CHECK(posix_memalign(&block, kLine, std::max<int64_t>(bytes, 1)) == 0, "not enough memory");
    return std::memset(block, 0xff, bytes);
  }
  const bool large = bytes >= kPage;
  const int64_t unit = large ? kUnit : kLine;
  const int64_t size = (std::max<int64_t>(bytes, 1) + unit - 1) / unit * unit;
  Cache& c = cache();
  std::lock_guard<std::mutex> lock(c.mutex);
  void* block = nullptr;
  int64_t have = size;
  const int64_t limit = c.most_used + c.most_used / kKept;
  auto it = c.free.lower_bound(size);
  // Better a block that is far too large than fresh pages in the place of others: where memory is short, it lies idle.
  if (it != c.free.end() && (it->first <= size + size / kSlack || c.used_bytes + c.free_bytes + size > limit)) {
    block = it->second;
    have = it->first;
    c.free_bytes -= have;
    c.free.erase(it);
  } else {
    while (!c.free.empty() && c.used_bytes + c.free_bytes + size > limit) c.drop_smallest();
    TORCH_CHECK_WITH(OutOfMemoryError, posix_memalign(&block, large ? kPage : kLine, size) == 0, "not enough memory: fastdarts tried to allocate ",
                     size, " bytes");
#if defined(__linux__)
    if (large) madvise(block, size, MADV_HUGEPAGE);
#endif
  }
  c.used[block] = have;
  c.used_bytes += have;
  c.most_used = std::max(c.most_used, c.used_bytes);
  return block;
}

void release_block(void* block) {
  if (kSanitized) return std::free(block);
  Cache& c = cache();
  std::lock_guard<std::mutex> lock(c.mutex);
  auto it = c.used.find(block);
  c.free.emplace(it->second, block);
  c.free_bytes += it->second;
  c.used_bytes -= it->second;
  c.used.erase(it);
}

int64_t empty_block_cache() {
  Cache& c = cache();
  std::lock_guard<std::mutex> lock(c.mutex);
  const int64_t freed = c.free_bytes;
  while (!c.free.empty()) c.drop_smallest();
  c.most_used = c.used_bytes;
  return freed;
}

namespace {

at::Tensor in_block(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType dtype) {
  void* block = acquire_block(c10::multiply_integers(sizes) * int64_t(c10::elementSize(dtype)));
  return at::from_blob(block, sizes, strides, [](void* p) { release_block(p); }, at::TensorOptions().dtype(dtype));
}

}  // namespace

at::Tensor empty_in_block(at::IntArrayRef sizes, at::ScalarType dtype) {
  return in_block(sizes, c10::contiguous_strides(sizes), dtype);
}

// No permuted tensor: torch adds gradients up in place only where nothing else, such as a base, holds their memory.
at::Tensor empty_image_in_block(at::IntArrayRef sizes, at::ScalarType dtype) {
  return in_block(sizes, c10::get_channels_last_strides_2d(sizes), dtype);
}

}  // namespace fastdarts
