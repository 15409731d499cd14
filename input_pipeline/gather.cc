// Copies square crops out of decoded pictures: one call per batch, without the GIL.

#include <cstdint>
#include <cstring>

// Row i of the batch is `size` lines of `line` bytes. Its first byte is pixels[starts[i]], and its
// lines lie `strides[i]` bytes apart; it is written to out + places[i] * size * line.
extern "C" void gather(const uint8_t* pixels, int64_t n, const int64_t* starts,
                       const int64_t* strides, const int64_t* places, int64_t size, int64_t line,
                       uint8_t* out) {
  for (int64_t i = 0; i < n; ++i) {
    const uint8_t* from = pixels + starts[i];
    uint8_t* to = out + places[i] * size * line;
    for (int64_t y = 0; y < size; ++y) std::memcpy(to + y * line, from + y * strides[i], line);
  }
}
