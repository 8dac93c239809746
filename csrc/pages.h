// Requests pages of 2 MiB for new memory, where the system offers them (Linux: transparent huge pages).
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lt {

constexpr size_t kLargePage = size_t(2) << 20;
constexpr size_t kLargePagesFrom = size_t(4) << 20;  // bytes: smaller arrays mostly reuse memory that has its pages

// Must be called before the first write: the system provides a page when it is first touched, and 512 small pages take
// several times as long as one large page. Only large pages that lie wholly within the array are requested, so no other
// memory is affected and none is added. Where the system has no large pages, the call does nothing.
inline void ask_for_large_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (!data || bytes <= kLargePagesFrom) return;
  const uintptr_t from = (reinterpret_cast<uintptr_t>(data) + kLargePage - 1) & ~uintptr_t(kLargePage - 1);
  const uintptr_t to = (reinterpret_cast<uintptr_t>(data) + bytes) & ~uintptr_t(kLargePage - 1);
  if (from < to) (void)madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace lt
