// A convolutional network in evaluation mode, for XLA:CPU: float32, NHWC, BatchNorm folded into the
// kernels, which are laid out as `folded.py` does.
//
// A thread takes a picture through all layers up to the mean of its positions: its activations stay
// in the cache, and no thread waits for another. The head behind it takes all pictures at once, since
// its kernels are large. A head, and all layers of a single picture, are shared out layer by layer.

#include <thread>

#include "vectors.h"

enum Kind : int64_t { kBytes, kDense, kDepthwise, kMean };

// in, add and out: 0 is the input, 1 the means, 2 the result, from 3 on buffers; add: -1 is none
struct Layer {
  Kind kind;
  int64_t in, add, out, h, w, c, k, stride, n, relu, weights;

  bool pointwise() const { return kind == kDense && k == 1 && stride == 1; }
  int64_t pad() const { return (k - 1) / 2; }
  int64_t oh() const { return (h - 1) / stride + 1; }
  int64_t ow() const { return (w - 1) / stride + 1; }
};

// --- bytes: a scale [c] and a shift [c]

// Rows first ... end - 1 of a picture of bytes, normalised.
void bytes(const Layer& l, const float* factors, const uint8_t* x, float* out, int64_t first,
           int64_t end) {
  const int64_t row = l.w * l.c;
  std::vector<float> scale(row), shift(row);
  for (int64_t i = 0; i < row; ++i) scale[i] = factors[i % l.c], shift[i] = factors[l.c + i % l.c];
  for (x += first * row; first < end; ++first, x += row, out += row)
    for (int64_t i = 0; i < row; ++i) out[i] = x[i] * scale[i] + shift[i];
}

// --- dense: the columns of a kernel lie in panels, [n / kPanel, k * k * c, kPanel], then the bias

constexpr int kPanel = 2 * kLanes;

// The rows of a window in the padded picture: `taps` of them, each `k` floats.
struct Windows {
  int64_t taps, k, tap, step;  // floats from a tap to the next, and from a window to the next
};

struct After {  // what follows a product
  const float* add;
  bool relu;
};

// C [R, columns] = the windows at `a` times a panel, plus the bias.
template <int R>
void tile(const Windows& a_of, const float* a, const float* panel, const float* bias,
          const After& after, int64_t columns, int64_t row, float* c) {
  constexpr int64_t kAhead = 1024;  // floats; the head's kernels come from far
  using V = Lanes<kLanes>::type;
  V sum[R][2];
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < 2; ++j) sum[r][j] = *(const V*)(bias + j * kLanes);
  for (int64_t tap = 0; tap < a_of.taps; ++tap, a += a_of.tap) {
    const float* base[(R + 2) / 3];  // three windows a base: fewer addresses to add to
    for (int g = 0; g < (R + 2) / 3; ++g) base[g] = a + 3 * g * a_of.step;
    for (int64_t i = 0; i < a_of.k; ++i, panel += kPanel) {
      const int64_t at[3] = {i, i + a_of.step, i + 2 * a_of.step};
      for (int j = 0; j < kPanel; j += kLanes) __builtin_prefetch(panel + kAhead + j);
      const V left = *(const V*)panel, right = *(const V*)(panel + kLanes);
      for (int r = 0; r < R; ++r) {
        const float x = base[r / 3][at[r % 3]];
        sum[r][0] += x * left;
        sum[r][1] += x * right;
      }
    }
  }
  for (int r = 0; r < R; ++r)
    if (columns == kPanel) {
      for (int j = 0; j < 2; ++j) {
        V y = sum[r][j];
        if (after.add) y += *(const V*)(after.add + r * row + j * kLanes);
        if (after.relu) y = y > 0 ? y : V{};
        *(V*)(c + r * row + j * kLanes) = y;
      }
    } else {
      for (int64_t i = 0; i < columns; ++i) {
        float y = ((const float*)sum[r])[i];
        if (after.add) y += after.add[r * row + i];
        c[r * row + i] = after.relu ? std::max(y, 0.f) : y;
      }
    }
}

template <int R = kTileRows, typename... Args>
void tile_of(int64_t rows, Args&&... args) {
  if constexpr (R > 1)
    if (rows < R) return tile_of<R - 1>(rows, args...);
  tile<R>(args...);
}

int64_t panels_of(const Layer& l) { return (l.n + kPanel - 1) / kPanel; }

// C [m, n] = the windows at `a` times panels `p` ... `end - 1`, plus the bias; the other columns of C
// stay. Tiles have nearly equal rows.
void products(int64_t m, int64_t n, const Windows& windows, const float* a, const float* panels,
              int64_t p, int64_t end, const float* bias, const After& after, float* c) {
  const int64_t tiles = (m + kTileRows - 1) / kTileRows, panel = windows.taps * windows.k * kPanel;
  for (; p < end; ++p)
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = p * kPanel, row = t * m / tiles, at = row * n + first;
      tile_of(std::min<int64_t>(kTileRows, (t + 1) * m / tiles - row), windows,
              a + row * windows.step, panels + p * panel, bias + first,
              After{after.add ? after.add + at : nullptr, after.relu},
              std::min<int64_t>(kPanel, n - first), n, c + at);
    }
}

// Rows first ... end - 1 and panels p ... p_end - 1 of the output, from x, the whole input.
void dense(const Layer& l, const float* kernel, const float* x, After after, float* out,
           int64_t first, int64_t end, int64_t p, int64_t p_end) {
  const int64_t ow = l.ow(), pad = l.pad();
  const float* bias = kernel + l.k * l.k * l.c * panels_of(l) * kPanel;
  if (l.pointwise()) {
    products((end - first) * ow, l.n, {1, l.c, 0, l.c}, x + first * ow * l.c, kernel, p, p_end,
             bias, after, out);
    return;
  }
  constexpr int64_t kBand = 4;  // rows of the output whose input is padded at once, in the cache
  const int64_t row = (l.w + 2 * pad) * l.c;
  const Windows windows{l.k, l.k * l.c, row, l.stride * l.c};
  thread_local std::vector<float> band;
  for (int64_t oy = first; oy < end; ++oy) {
    const int64_t inside = (oy - first) % kBand * l.stride;
    if (inside == 0)
      padded(x, l.h, l.w, l.c, pad, oy * l.stride,
             (std::min(kBand, end - oy) - 1) * l.stride + l.k, band);
    products(ow, l.n, windows, band.data() + inside * row, kernel, p, p_end, bias, after, out);
    out += ow * l.n;
    if (after.add) after.add += ow * l.n;
  }
}

// --- depthwise: kernel [k, k, c], then the bias

void depthwise(const Layer& l, const float* kernel, const float* x, float* out, int64_t first,
               int64_t end) {
  const Depthwise of{l.h, l.w, l.c, l.k, l.k, l.stride, l.pad()};
  const float* bias = kernel + l.k * l.k * l.c;
  for (; first < end; ++first, out += l.ow() * l.c)
    of.row(
        x, kernel, first, l.ow(), out,
        [&](auto lanes, int64_t c) { return *(const typename decltype(lanes)::type*)(bias + c); },
        [&](auto y) { return l.relu ? (y > 0 ? y : decltype(y){}) : y; });
}

// Columns first ... end - 1 of the mean of a picture's positions.
void mean(const Layer& l, const float* x, float* out, int64_t first, int64_t end) {
  const int64_t positions = l.h * l.w;
  auto columns = [&](auto lanes, int64_t c) {
    using V = typename decltype(lanes)::type;
    V sum{};
    for (int64_t i = 0; i < positions; ++i) sum += *(const V*)(x + i * l.c + c);
    *(V*)(out + c) = sum / (float)positions;
  };
  for_lanes(end, columns, first);
}

// --- the network

struct Network {
  const float* weights;
  ffi::Span<const int64_t> sizes;  // of the buffers, in floats

  // Share `i` of `n` of a layer: some of its rows, or of its panels where there are few rows.
  void run(const Layer& l, float* const* slots, int64_t i, int64_t n) const {
    constexpr int64_t kFewRows = 8;
    const int64_t rows = l.oh(), panels = panels_of(l);
    const bool by_panels = l.kind == kMean || (l.pointwise() && rows < kFewRows);
    const int64_t first = by_panels ? 0 : i * rows / n, end = by_panels ? rows : (i + 1) * rows / n;
    const int64_t p = by_panels ? i * panels / n : 0;
    const int64_t p_end = by_panels ? (i + 1) * panels / n : panels;
    const int64_t skip = first * l.ow() * l.n;
    const After after{l.add < 0 ? nullptr : slots[l.add] + skip, l.relu != 0};
    float* out = slots[l.out] + skip;
    if (l.kind == kBytes)
      bytes(l, weights + l.weights, (const uint8_t*)slots[l.in], out, first, end);
    else if (l.kind == kMean)
      mean(l, slots[l.in], out, p * kPanel, std::min(p_end * kPanel, l.n));
    else if (l.kind == kDepthwise)
      depthwise(l, weights + l.weights, slots[l.in], out, first, end);
    else
      dense(l, weights + l.weights, slots[l.in], after, out, first, end, p, p_end);
  }

  // The places of activations; the buffers are this thread's.
  std::vector<float*> slots(const void* x, float* means, float* y) const {
    thread_local std::vector<std::vector<float>> buffers;
    if (buffers.size() < sizes.size()) buffers.resize(sizes.size());
    std::vector<float*> all{(float*)x, means, y};
    for (size_t i = 0; i < sizes.size(); ++i) {
      if ((int64_t)buffers[i].size() < sizes[i]) buffers[i].resize(sizes[i]);
      all.push_back(buffers[i].data());
    }
    return all;
  }

  // Some layers on all threads: they take shares of a layer and wait, awake, for its end.
  void together(ffi::ThreadPool& pool, const Layer* layers, int64_t count,
                float* const* slots) const {
    struct Shared {
      explicit Shared(int64_t n) : next(n), done(n) {}
      std::vector<std::atomic<int64_t>> next, done;
    };
    constexpr int64_t kMost = 8;  // more threads wait longer for each other than they save
    const int64_t threads = std::min<int64_t>(kMost, pool.num_threads());
    auto shared = std::make_shared<Shared>(count);
    // A late helper finds no share left, and touches nothing but the counters.
    auto work = [=] {
      for (int64_t l = 0; l < count; ++l) {
        for (int64_t i; (i = shared->next[l]++) < threads; ++shared->done[l])
          run(layers[l], slots, i, threads);
        for (int64_t turns = 1; shared->done[l] < threads; ++turns)
          if (turns % 10000 == 0) std::this_thread::yield();
      }
    };
    for (int64_t t = 1; t < threads; ++t) pool.Schedule([work] { work(); });
    work();
  }
};

ffi::Error network(ffi::ThreadPool pool, ffi::AnyBuffer x, Array weights,
                   ffi::Span<const int64_t> numbers, ffi::Span<const int64_t> sizes, Result y) {
  if (y->element_count() == 0) return ffi::Error::Success();
  const Network net{weights.typed_data(), sizes};
  const auto* layers = (const Layer*)numbers.begin();
  const int64_t count = numbers.size() * sizeof(int64_t) / sizeof(Layer);
  const int64_t batch = x.dimensions()[0], in = x.size_bytes() / batch;
  const Layer* last = layers;  // of those that take one picture
  while (last->kind != kMean) ++last;
  std::vector<float> means(batch * last->n);
  if (batch == 1) {
    auto slots = net.slots(x.untyped_data(), means.data(), y->typed_data());
    net.together(pool, layers, count, slots.data());
    return ffi::Error::Success();
  }
  parallel_for(pool, batch, [&](int64_t b) {
    const char* picture = (const char*)x.untyped_data() + b * in;
    auto slots = net.slots(picture, means.data() + b * last->n, nullptr);
    for (const Layer* l = layers; l <= last; ++l) net.run(*l, slots.data(), 0, 1);
  });
  auto slots = net.slots(nullptr, means.data(), y->typed_data());
  net.together(pool, last + 1, layers + count - last - 1, slots.data());
  return ffi::Error::Success();
}

extern "C" int mnv4_panel() { return kPanel; }

XLA_FFI_DEFINE_HANDLER_SYMBOL(mnv4_network, network,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<Array>()
                                  .Attr<ffi::Span<const int64_t>>("layers")
                                  .Attr<ffi::Span<const int64_t>>("sizes")
                                  .Ret<Array>());
