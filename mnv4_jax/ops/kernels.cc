// For XLA:CPU, float32, NHWC: the convolutions that `conv.py` describes, each with its two gradients,
// a matrix product's gradient, the sums of `norm.py` and the copies of `split.py`.
//
// XLA:CPU has no fast form of a depthwise or of a small dense convolution. Channels are the vector
// lanes here; GCC's vector extensions compile to the vector instructions of the machine. One thread
// writes each output element, in a fixed order, so results do not depend on scheduling.

#include "vectors.h"

struct Shape {  // x [batch, h, w, c] under kernel [kh, kw, ...] gives [batch, oh, ow, n]
  int64_t batch, h, w, c, kh, kw, oh, ow, n, stride, pad;

  Shape(Array::Dimensions x, Array::Dimensions k, Array::Dimensions y, int64_t stride, int64_t pad)
      : batch(x[0]), h(x[1]), w(x[2]), c(x[3]), kh(k[0]), kw(k[1]), oh(y[1]), ow(y[2]), n(y[3]),
        stride(stride), pad(pad) {}
};

// result = the sum of what add(b, sum) adds for each picture b of the batch, in a fixed order.
template <typename Add>
void sum_of_parts(ffi::ThreadPool& pool, int64_t batch, Result& result, const Add& add) {
  const int64_t parts = std::min<int64_t>(batch, 16), size = result->element_count();
  std::vector<float> sums(parts * size);
  parallel_for(pool, parts, [&](int64_t part) {
    for (int64_t b = part; b < batch; b += parts) add(b, sums.data() + part * size);
  });
  std::copy_n(sums.data(), size, result->typed_data());
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t i = 0; i < size; ++i) result->typed_data()[i] += sums[part * size + i];
}

// --- depthwise: kernel [kh, kw, c]

// y [batch, oh, ow, c] = x [batch, h, w, c] under the kernel.
void correlate(ffi::ThreadPool& pool, const Depthwise& of, int64_t batch, int64_t oh, int64_t ow,
               const float* x, const float* kernel, float* y) {
  parallel_for(pool, batch * oh, [&](int64_t task) {
    of.row(
        x + task / oh * of.h * of.w * of.c, kernel, task % oh, ow, y + task * ow * of.c,
        [](auto lanes, int64_t) { return typename decltype(lanes)::type{}; },
        [](auto sum) { return sum; });
  });
}

ffi::Error depthwise(ffi::ThreadPool pool, Array x, Array k, int64_t stride, int64_t pad,
                     Result y) {
  const Shape s(x.dimensions(), k.dimensions(), y->dimensions(), stride, pad);
  correlate(pool, {s.h, s.w, s.c, s.kh, s.kw, stride, pad}, s.batch, s.oh, s.ow, x.typed_data(),
            k.typed_data(), y->typed_data());
  return ffi::Error::Success();
}

ffi::Error depthwise_dx(ffi::ThreadPool pool, Array dy, Array k, int64_t stride, int64_t pad,
                        Result dx) {
  const Shape s(dx->dimensions(), k.dimensions(), dy.dimensions(), stride, pad);
  if (stride == 1 && s.kh == s.kw) {  // the same with the kernel turned round
    std::vector<float> turned(k.element_count());
    for (int64_t tap = 0; tap < s.kh * s.kw; ++tap)
      std::copy_n(k.typed_data() + (s.kh * s.kw - 1 - tap) * s.c, s.c, &turned[tap * s.c]);
    correlate(pool, {s.oh, s.ow, s.c, s.kh, s.kw, 1, s.kh - 1 - pad}, s.batch, s.h, s.w,
              dy.typed_data(), turned.data(), dx->typed_data());
    return ffi::Error::Success();
  }
  parallel_for(pool, s.batch * s.h, [&](int64_t task) {
    const int64_t b = task / s.h, y = task % s.h + s.pad;
    const float* image = dy.typed_data() + b * s.oh * s.ow * s.c;
    float* out = dx->typed_data() + task * s.w * s.c;
    // Position p was under tap i of output (p - i) / stride: taps of one phase, outputs inside.
    auto first = [&](int64_t p, int64_t outs) {
      const int64_t over = p - (outs - 1) * s.stride;
      return over > p % s.stride ? over : p % s.stride;
    };
    const int64_t i0 = first(y, s.oh), i1 = std::min(s.kh, y + 1);
    for (int64_t ix = 0; ix < s.w; ++ix, out += s.c) {
      const int64_t x = ix + s.pad, j0 = first(x, s.ow), j1 = std::min(s.kw, x + 1);
      for_lanes(s.c, [&](auto lanes, int64_t c) {
        using V = typename decltype(lanes)::type;
        V sum{};
        for (int64_t i = i0; i < i1; i += s.stride)
          for (int64_t j = j0; j < j1; j += s.stride)
            sum += *(const V*)(image + ((y - i) / s.stride * s.ow + (x - j) / s.stride) * s.c + c) *
                   *(const V*)(k.typed_data() + (i * s.kw + j) * s.c + c);
        *(V*)(out + c) = sum;
      });
    }
  });
  return ffi::Error::Success();
}

// Of one picture and some channels: adds x * dy of all outputs to the taps (i, j) ... (i, j + G - 1),
// which read dy once. The picture lies inside its zeros, these channels only.
template <int G, typename L>
void add_taps(L, const Shape& s, const float* x, const float* dy, int64_t i, int64_t j, float* dk) {
  using V = typename L::type;
  const V* row = (const V*)x + i * (s.w + 2 * s.pad) + j;
  V sum[G]{};
  for (int64_t oy = 0; oy < s.oh; ++oy, row += s.stride * (s.w + 2 * s.pad))
    for (int64_t ox = 0; ox < s.ow; ++ox, dy += s.c)
      for (int g = 0; g < G; ++g) sum[g] += row[ox * s.stride + g] * *(const V*)dy;
  for (int g = 0; g < G; ++g) *(V*)(dk + (i * s.kw + j + g) * s.c) += sum[g];
}

ffi::Error depthwise_dk(ffi::ThreadPool pool, Array x, Array dy, int64_t stride, int64_t pad,
                        Result dk) {
  const Shape s(x.dimensions(), dk->dimensions(), dy.dimensions(), stride, pad);
  sum_of_parts(pool, s.batch, dk, [&](int64_t b, float* sum) {
    for_lanes(s.c, [&](auto lanes, int64_t c) {
      using V = typename decltype(lanes)::type;
      const int64_t width = s.w + 2 * pad;
      thread_local std::vector<float> image;
      image.assign((s.h + 2 * pad) * width * sizeof(V) / sizeof(float), 0.f);
      for (int64_t y = 0; y < s.h; ++y)
        for (int64_t i = 0; i < s.w; ++i)
          *((V*)image.data() + (y + pad) * width + i + pad) =
              *(const V*)(x.typed_data() + ((b * s.h + y) * s.w + i) * s.c + c);
      const float* out = dy.typed_data() + b * s.oh * s.ow * s.c + c;
      for (int64_t i = 0; i < s.kh; ++i) {
        int64_t j = 0;
        auto taps = [&](auto count) {
          constexpr int G = decltype(count)::value;
          for (; j + G <= s.kw; j += G) add_taps<G>(lanes, s, image.data(), out, i, j, sum + c);
        };
        taps(std::integral_constant<int, 5>{});
        taps(std::integral_constant<int, 3>{});
        taps(std::integral_constant<int, 1>{});
      }
    });
  });
  return ffi::Error::Success();
}

// --- dense: kernel [kh, kw, c, n]. In NHWC a window's row is kw * c consecutive floats, so a row of
// outputs is kh matrix products straight from the padded image, without an im2col.

// C [m, n] += the sum over `taps` of A [m, k] B [k, n]. The columns of B and C are consecutive, all
// other axes have a stride. C's rows may overlap: they are updated one after the other. A tile is R
// rows of P vectors, whose sums stay in registers.
struct Products {
  int64_t taps, a_tap, b_tap, k, a_row, a_col, b_row, c_row;
};

template <int R, int P, typename L>
void tile(L, const Products& p, const float* a, const float* b, float* c) {
  using V = typename L::type;  // as a template argument it would lose its attributes
  constexpr int64_t lanes = sizeof(V) / sizeof(float);
  V sum[R][P]{};
  for (int64_t tap = 0; tap < p.taps; ++tap) {
    const float *at = a + tap * p.a_tap, *bt = b + tap * p.b_tap;
    for (int64_t i = 0; i < p.k; ++i, at += p.a_col, bt += p.b_row) {
      V column[P];
      for (int j = 0; j < P; ++j) column[j] = *(const V*)(bt + j * lanes);
      for (int r = 0; r < R; ++r)
        for (int j = 0; j < P; ++j) sum[r][j] += at[r * p.a_row] * column[j];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < P; ++j) *(V*)(c + r * p.c_row + j * lanes) += sum[r][j];
}

void add_products(int64_t m, int64_t n, const Products& p, const float* a, const float* b,
                  float* c) {
  int64_t row = 0;
  auto rows = [&](auto count) {
    constexpr int R = decltype(count)::value;
    for (; row + R <= m; row += R) {
      const float* from = a + row * p.a_row;
      float* to = c + row * p.c_row;
      int64_t i = 0;
      for (; i + 2 * kLanes <= n; i += 2 * kLanes)
        tile<R, 2>(Lanes<kLanes>{}, p, from, b + i, to + i);
      for_lanes(n - i, [&](auto lanes, int64_t j) {
        tile<R, 1>(lanes, p, from, b + i + j, to + i + j);
      });
    }
  };
  rows(std::integral_constant<int, kTileRows>{});
  rows(std::integral_constant<int, 8>{});
  rows(std::integral_constant<int, 4>{});
  rows(std::integral_constant<int, 2>{});
  rows(std::integral_constant<int, 1>{});
}

ffi::Error dense(ffi::ThreadPool pool, Array x, Array k, int64_t stride, int64_t pad, Result y) {
  const Shape s(x.dimensions(), k.dimensions(), y->dimensions(), stride, pad);
  const int64_t row = (s.w + 2 * s.pad) * s.c, window = s.kw * s.c;
  const Products products{s.kh, row, window * s.n, window, s.stride * s.c, 1, s.n, s.n};
  constexpr int64_t kRows = 8;  // of outputs a task, so that one picture feeds several threads
  const int64_t blocks = (s.oh + kRows - 1) / kRows;
  parallel_for(pool, s.batch * blocks, [&](int64_t task) {
    const int64_t b = task / blocks, first = task % blocks * kRows;
    const int64_t rows = std::min(kRows, s.oh - first);
    thread_local std::vector<float> image;
    padded(x.typed_data() + b * s.h * s.w * s.c, s.h, s.w, s.c, s.pad, first * s.stride,
           (rows - 1) * s.stride + s.kh, image);
    float* out = y->typed_data() + (b * s.oh + first) * s.ow * s.n;
    std::fill_n(out, rows * s.ow * s.n, 0.f);
    for (int64_t oy = 0; oy < rows; ++oy)
      add_products(s.ow, s.n, products, image.data() + oy * s.stride * row, k.typed_data(),
                   out + oy * s.ow * s.n);
  });
  return ffi::Error::Success();
}

// kernel is [kh, n, kw, c] here: the columns of a product are consecutive in B.
ffi::Error dense_dx(ffi::ThreadPool pool, Array dy, Array k, int64_t stride, int64_t pad,
                    Result dx) {
  Shape s(dx->dimensions(), k.dimensions(), dy.dimensions(), stride, pad);
  s.kw = k.dimensions()[2];
  const int64_t row = (s.w + 2 * s.pad) * s.c, window = s.kw * s.c;
  const Products products{1, 0, 0, s.n, s.n, 1, window, s.stride * s.c};
  parallel_for(pool, s.batch, [&](int64_t b) {
    thread_local std::vector<float> image;
    image.assign((s.h + 2 * s.pad) * row, 0.f);
    for (int64_t oy = 0; oy < s.oh; ++oy)
      for (int64_t i = 0; i < s.kh; ++i)
        add_products(s.ow, window, products, dy.typed_data() + (b * s.oh + oy) * s.ow * s.n,
                     k.typed_data() + i * s.n * window, image.data() + (oy * s.stride + i) * row);
    for (int64_t y = 0; y < s.h; ++y)
      std::memcpy(dx->typed_data() + (b * s.h + y) * s.w * s.c,
                  image.data() + (y + s.pad) * row + s.pad * s.c, s.w * s.c * sizeof(float));
  });
  return ffi::Error::Success();
}

ffi::Error dense_dk(ffi::ThreadPool pool, Array x, Array dy, int64_t stride, int64_t pad,
                    Result dk) {
  const Shape s(x.dimensions(), dk->dimensions(), dy.dimensions(), stride, pad);
  const int64_t row = (s.w + 2 * s.pad) * s.c, window = s.kw * s.c;
  const Products products{1, 0, 0, s.ow, 1, s.stride * s.c, s.n, s.n};
  sum_of_parts(pool, s.batch, dk, [&](int64_t b, float* sum) {
    thread_local std::vector<float> image;
    padded(x.typed_data() + b * s.h * s.w * s.c, s.h, s.w, s.c, s.pad, 0, s.h + 2 * s.pad, image);
    for (int64_t oy = 0; oy < s.oh; ++oy)
      for (int64_t i = 0; i < s.kh; ++i)
        add_products(window, s.n, products, image.data() + (oy * s.stride + i) * row,
                     dy.typed_data() + (b * s.oh + oy) * s.ow * s.n, sum + i * window * s.n);
  });
  return ffi::Error::Success();
}

// --- dk [K, N] = x [M, K], transposed, times dy [M, N]: XLA:CPU copies x into a transposed array

ffi::Error product_dk(ffi::ThreadPool pool, Array x, Array dy, Result dk) {
  const int64_t m = x.dimensions()[0], k = x.dimensions()[1], n = dy.dimensions()[1];
  // A part is a sum of its own; both blocks of rows stay in the cache for all columns of x.
  constexpr int64_t kPart = 1024, kBlock = 128, kColumns = 4 * kTileRows;
  const int64_t parts = (m + kPart - 1) / kPart, columns = (k + kColumns - 1) / kColumns;
  std::vector<float> sums((parts - 1) * k * n);
  parallel_for(pool, parts * columns, [&](int64_t task) {
    const int64_t part = task / columns, first = task % columns * kColumns;
    const int64_t count = std::min(kColumns, k - first);
    float* sum = (part ? sums.data() + (part - 1) * k * n : dk->typed_data()) + first * n;
    std::fill_n(sum, count * n, 0.f);
    const int64_t end = std::min(m, (part + 1) * kPart);
    for (int64_t row = part * kPart; row < end; row += kBlock)
      add_products(count, n, {1, 0, 0, std::min(kBlock, end - row), 1, k, n, n},
                   x.typed_data() + row * k + first, dy.typed_data() + row * n, sum);
  });
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t i = 0; i < k * n; ++i) dk->typed_data()[i] += sums[(part - 1) * k * n + i];
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    mnv4_product_dk, product_dk,
    ffi::Ffi::Bind()
        .Ctx<ffi::ThreadPool>()
        .Arg<Array>()
        .Arg<Array>()
        .Ret<Array>());

// --- a, b [rows, c] -> [c] each: the sums of a and of a * b over the rows

ffi::Error sums(ffi::ThreadPool pool, Array a, Array b, Result of_a, Result of_products) {
  constexpr int64_t kRows = 1024, kTogether = 8;  // rows of a task; of them, in registers at once
  const int64_t c = of_a->element_count(), rows = a.element_count() / c;
  const int64_t parts = (rows + kRows - 1) / kRows;
  std::vector<float> partial(parts * 2 * c, 0.f);
  parallel_for(pool, parts, [&](int64_t part) {
    float* sum = partial.data() + part * 2 * c;
    const int64_t end = std::min(rows, (part + 1) * kRows);
    for (int64_t row = part * kRows; row < end; row += kTogether) {
      const int64_t offset = row * c, together = std::min(kTogether, end - row);
      for_lanes(c, [&](auto lanes, int64_t first) {
        using V = typename decltype(lanes)::type;
        V plain{}, product{};
        for (int64_t r = 0; r < together; ++r) {
          const V x = *(const V*)(a.typed_data() + offset + r * c + first);
          plain += x;
          product += x * *(const V*)(b.typed_data() + offset + r * c + first);
        }
        *(V*)(sum + first) += plain;
        *(V*)(sum + c + first) += product;
      });
    }
  });
  std::fill_n(of_a->typed_data(), c, 0.f);
  std::fill_n(of_products->typed_data(), c, 0.f);
  for (const float* sum = partial.data(); sum < partial.data() + partial.size(); sum += 2 * c)
    for (int64_t i = 0; i < c; ++i) {
      of_a->typed_data()[i] += sum[i];
      of_products->typed_data()[i] += sum[c + i];
    }
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    mnv4_sums, sums,
    ffi::Ffi::Bind()
        .Ctx<ffi::ThreadPool>()
        .Arg<Array>()
        .Arg<Array>()
        .Ret<Array>()
        .Ret<Array>());

// --- a vector [N] -> its parts, one after the other, each in the shape of its result

ffi::Error split(ffi::ThreadPool pool, Array vector, ffi::RemainingRets parts) {
  struct Part {
    const float* from;
    Result to;
  };
  std::vector<Part> copies;
  const float* from = vector.typed_data();
  for (size_t i = 0; i < parts.size(); ++i) {
    auto to = parts.get<Array>(i);
    if (to.has_error()) return to.error();
    copies.push_back({from, *to});
    from += (*to)->element_count();
  }
  if (from > vector.typed_data() + vector.element_count())
    return ffi::Error::InvalidArgument("split: the parts are longer than the vector");
  parallel_for(pool, copies.size(), [&](int64_t i) {
    std::copy_n(copies[i].from, copies[i].to->element_count(), copies[i].to->typed_data());
  });
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    mnv4_split, split,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().RemainingRets());

#define HANDLER(name)                                                                       \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(mnv4_##name, name,                                          \
                                ffi::Ffi::Bind()                                            \
                                    .Ctx<ffi::ThreadPool>()                                 \
                                    .Arg<Array>()                                           \
                                    .Arg<Array>()                                           \
                                    .Attr<int64_t>("stride")                                \
                                    .Attr<int64_t>("padding")                               \
                                    .Ret<Array>())
HANDLER(depthwise);
HANDLER(depthwise_dx);
HANDLER(depthwise_dk);
HANDLER(dense);
HANDLER(dense_dx);
HANDLER(dense_dk);
