// Shared by the C++ of this folder: arrays of XLA, its threads, and vectors as wide as the machine's.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;

// Calls task(0) ... task(n - 1) on the pool's threads and on this one.
//
// XLA runs several operations at once on the same pool, so this thread may only wait for tasks that
// another thread has started. It does all remaining tasks itself.
template <typename Task>
void parallel_for(ffi::ThreadPool& pool, int64_t n, const Task& task) {
  struct Shared {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto shared = std::make_shared<Shared>();
  auto work = [shared, n, &task] {  // a late helper finds nothing left and touches no task
    int64_t mine = 0;
    for (int64_t i; (i = shared->next++) < n; ++mine) task(i);
    if (mine) {
      std::lock_guard<std::mutex> lock(shared->mutex);
      if ((shared->done += mine) == n) shared->all_done.notify_one();
    }
  };
  for (int64_t t = 1; t < std::min<int64_t>(n, pool.num_threads()); ++t)
    pool.Schedule([work] { work(); });
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done == n; });
}

// Rows first ... first + count - 1 of a picture x [h, w, c] inside a border of `pad` zeros: fills `to`,
// [count, w + 2 pad, c].
inline void padded(const float* x, int64_t h, int64_t w, int64_t c, int64_t pad, int64_t first,
                   int64_t count, std::vector<float>& to) {
  const int64_t row = (w + 2 * pad) * c, edge = pad * c;
  to.resize(count * row);
  for (int64_t i = 0; i < count; ++i) {
    float* begin = to.data() + i * row;
    const int64_t y = first + i - pad;
    if (y < 0 || y >= h) {
      std::fill_n(begin, row, 0.f);
      continue;
    }
    std::fill_n(begin, edge, 0.f);
    std::copy_n(x + y * w * c, w * c, begin + edge);
    std::fill_n(begin + row - edge, edge, 0.f);
  }
}

template <int L>
struct Lanes {
  typedef float type __attribute__((vector_size(4 * L), aligned(4), may_alias));
};
template <>
struct Lanes<1> {
  typedef float type;
};

// The lanes of a register, and the rows of a tile whose sums fit in the registers. A vector wider
// than the machine's, or one sum too many, is kept in memory and is thirty times slower.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kTileRows = 14;
#elif defined(__AVX__)
constexpr int kLanes = 8, kTileRows = 6;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kTileRows = 8;
#else
constexpr int kLanes = 4, kTileRows = 6;
#endif

// Calls f(Lanes<L>{}, first) for pieces of L lanes, the widest first, that cover i ... n - 1.
template <int L = kLanes, typename F>
void for_lanes(int64_t n, const F& f, int64_t i = 0) {
  for (; i + L <= n; i += L) f(Lanes<L>{}, i);
  if constexpr (L > 1) for_lanes<(L > 4 ? L / 2 : 1)>(n, f, i);
}

// A depthwise convolution of pictures [h, w, c] with kernels [kh, kw, c].
struct Depthwise {
  int64_t h, w, c, kh, kw, stride, pad;

  // Row oy of the output, [ow, c]: after(sum of the products that begins as before(lanes, channel)).
  template <typename Before, typename After>
  void row(const float* x, const float* kernel, int64_t oy, int64_t ow, float* out,
           const Before& before, const After& after) const {
    constexpr int64_t kTogether = 4;  // outputs side by side, which read a tap once
    const int64_t top = oy * stride - pad;
    const int64_t i0 = std::max<int64_t>(0, -top), i1 = std::min(kh, h - top);
    for (int64_t ox = 0; ox < ow;) {
      const int64_t left = ox * stride - pad;
      const int64_t j0 = std::max<int64_t>(0, -left), j1 = std::min(kw, w - left);
      auto outputs = [&](auto count) {
        constexpr int P = decltype(count)::value;
        for_lanes(c, [&](auto lanes, int64_t channel) {
          using V = typename decltype(lanes)::type;
          const float* from = x + (top * w + left) * c + channel;
          V sum[P];
          for (int p = 0; p < P; ++p) sum[p] = before(lanes, channel);
          for (int64_t i = i0; i < i1; ++i)
            for (int64_t j = j0; j < j1; ++j) {
              const V tap = *(const V*)(kernel + (i * kw + j) * c + channel);
              for (int p = 0; p < P; ++p)
                sum[p] += *(const V*)(from + (i * w + j + p * stride) * c) * tap;
            }
          for (int p = 0; p < P; ++p) *(V*)(out + (ox + p) * c + channel) = after(sum[p]);
        });
        ox += P;
      };
      const bool inside = left >= 0 && left + (kTogether - 1) * stride + kw <= w;
      if (inside && ox + kTogether <= ow)
        outputs(std::integral_constant<int, kTogether>{});
      else
        outputs(std::integral_constant<int, 1>{});
    }
  }
};
