// New memory by pages of 2 MiB where the system has them for who asks (Linux: transparent huge pages).
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lt {

constexpr size_t kLargePage = size_t(2) << 20;
constexpr size_t kManyPages = size_t(4) << 20;  // bytes, a slab of logits; with no more, memory is used again

// To be called before anything is written: a page is made when it is first touched, and making 512 small ones takes several
// times as long as one of their size. Only whole large pages within the array are asked for, so nobody else's memory and
// no byte more is. A system that has none says so, and nothing is lost.
inline void ask_for_large_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (!data || bytes <= kManyPages) return;
  const uintptr_t from = (reinterpret_cast<uintptr_t>(data) + kLargePage - 1) & ~uintptr_t(kLargePage - 1);
  const uintptr_t to = (reinterpret_cast<uintptr_t>(data) + bytes) & ~uintptr_t(kLargePage - 1);
  if (from < to) (void)madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace lt
