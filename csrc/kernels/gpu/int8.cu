// float32 to signed bytes with a scale for each block, and back: the arithmetic of ringdp/torch/comm_hooks/int8.py.
//
// A row of 32 threads does a block. Values are read twice, for the largest and then for the codes; the second time they
// come out of a cache. Of blocks that divide by four, four values are read, and four codes written, at once.
#include "kernels/gpu/tiles.h"

namespace ringdp::kernels::gpu {
namespace {

constexpr unsigned kLanes = 32, kRows = kThreads / kLanes;

constexpr float kLeastNormal =
    0x1p-126f;  // divides where the scale is less: a block of zeros, or too small for a scale

RINGDP_DEVICE float magnitude(float x) { return bits_as<float>(bits_as<uint32_t>(x) & 0x7fffffff); }
RINGDP_DEVICE float larger(float a, float b) { return a > b ? a : b; }

// Halves round to even. Values that are not finite have no code that means anything.
RINGDP_DEVICE int8_t code_of(float x, float scale) {
  const float rounded = rintf(x / larger(scale, kLeastNormal));
  const float code = rounded < -127 ? -127 : rounded > 127 ? 127 : rounded;
  return code == code ? static_cast<int8_t>(code) : int8_t{0};
}

// A block: where its values and its codes are.
struct Block {
  Address values, codes;
  unsigned long long here;  // values that there are: fewer than `size` in the last block
  unsigned long long size;
  bool by_fours;
};

RINGDP_DEVICE Block block_at(uint64_t index, Address values, Address wire, const QuantiseParameters& given) {
  const uint64_t first = index * given.block, left = given.count - first;
  const uint64_t here = left < given.block ? left : given.block;
  const bool by_fours = given.block % 4 == 0 && here % 4 == 0 && fits_words(values) && wire % 4 == 0;
  return {values + first * sizeof(float), wire + index * (given.block + kScaleBytes), here, given.block, by_fours};
}

using Values = Group<float, 4>;
struct alignas(4) Codes {
  int8_t elements[4];
};

// use(value) for this lane's values of the block.
template <class Use>
RINGDP_DEVICE void each_value(unsigned lane, const Block& block, Use use) {
  if (block.by_fours) {
    RINGDP_NO_UNROLL
    for (uint64_t i = 4 * lane; i < block.here; i += 4 * kLanes) {
      const auto four = load_group<float, 4>(block.values + i * sizeof(float));
      RINGDP_UNROLL
      for (unsigned k = 0; k < 4; ++k) use(four.elements[k]);
    }
    return;
  }
  RINGDP_NO_UNROLL
  for (uint64_t i = lane; i < block.here; i += kLanes) use(load<float>(block.values + i * sizeof(float)));
}

RINGDP_DEVICE float largest_of(unsigned lane, const Block& block) {
  float largest = 0;
  each_value(lane, block, [&](float x) { largest = larger(largest, magnitude(x)); });
  return largest;
}

RINGDP_DEVICE void write_codes(unsigned lane, const Block& block, float scale) {
  if (block.by_fours) {
    RINGDP_NO_UNROLL
    for (uint64_t i = 4 * lane; i < block.here; i += 4 * kLanes) {
      const auto four = load_group<float, 4>(block.values + i * sizeof(float));
      Codes codes;
      RINGDP_UNROLL
      for (unsigned k = 0; k < 4; ++k) codes.elements[k] = code_of(four.elements[k], scale);
      store<uint32_t>(block.codes + i, bits_as<uint32_t>(codes));
    }
  } else {
    RINGDP_NO_UNROLL
    for (uint64_t i = lane; i < block.here; i += kLanes)
      store<int8_t>(block.codes + i, code_of(load<float>(block.values + i * sizeof(float)), scale));
  }
  RINGDP_NO_UNROLL
  for (uint64_t i = block.here + lane; i < block.size; i += kLanes) store<int8_t>(block.codes + i, 0);
}

// The scale may lie at any address.
RINGDP_DEVICE void write_scale(unsigned lane, const Block& block, float scale) {
  const auto bits = bits_as<uint32_t>(scale);
  if (lane < kScaleBytes) store<uint8_t>(block.codes + block.size + lane, static_cast<uint8_t>(bits >> (8 * lane)));
}
RINGDP_DEVICE float read_scale(const Block& block) {
  uint32_t bits = 0;
  RINGDP_UNROLL
  for (unsigned i = 0; i < kScaleBytes; ++i) bits |= uint32_t{load<uint8_t>(block.codes + block.size + i)} << (8 * i);
  return bits_as<float>(bits);
}

RINGDP_DEVICE void quantise(const QuantiseParameters& given) {
  RINGDP_SHARED float largest[kRows][kLanes];
  const uint64_t blocks = blocks_of(given.count, given.block);
  for (uint64_t first = this_block() * kRows; first < blocks; first += all_blocks() * kRows) {
    each_thread([&](unsigned thread) {
      const unsigned row = thread / kLanes, lane = thread % kLanes;
      if (first + row >= blocks) return;
      largest[row][lane] = largest_of(lane, block_at(first + row, given.from, given.to, given));
    });
    barrier();
    each_thread([&](unsigned thread) {
      const unsigned row = thread / kLanes, lane = thread % kLanes;
      if (first + row >= blocks) return;
      float of_all = 0;
      RINGDP_NO_UNROLL
      for (unsigned i = 0; i < kLanes; ++i) of_all = larger(of_all, largest[row][i]);
      const Block block = block_at(first + row, given.from, given.to, given);
      write_codes(lane, block, of_all / 127);
      write_scale(lane, block, of_all / 127);
    });
    barrier();  // before the next blocks' values overwrite `largest`
  }
}

RINGDP_DEVICE void read_codes(unsigned lane, const Block& block, float scale) {
  if (block.by_fours) {
    RINGDP_NO_UNROLL
    for (uint64_t i = 4 * lane; i < block.here; i += 4 * kLanes) {
      const auto codes = bits_as<Codes>(load<uint32_t>(block.codes + i));
      Values four;
      RINGDP_UNROLL
      for (unsigned k = 0; k < 4; ++k) four.elements[k] = static_cast<float>(codes.elements[k]) * scale;
      store_group(block.values + i * sizeof(float), four);
    }
    return;
  }
  RINGDP_NO_UNROLL
  for (uint64_t i = lane; i < block.here; i += kLanes)
    store<float>(block.values + i * sizeof(float), static_cast<float>(load<int8_t>(block.codes + i)) * scale);
}

RINGDP_DEVICE void dequantise(const QuantiseParameters& given) {
  const uint64_t blocks = blocks_of(given.count, given.block);
  for (uint64_t first = this_block() * kRows; first < blocks; first += all_blocks() * kRows)
    each_thread([&](unsigned thread) {
      const unsigned row = thread / kLanes, lane = thread % kLanes;
      if (first + row >= blocks) return;
      const Block block = block_at(first + row, given.to, given.from, given);
      read_codes(lane, block, read_scale(block));
    });
}

RINGDP_KERNEL(quantise, QuantiseParameters, quantise)
RINGDP_KERNEL(dequantise, QuantiseParameters, dequantise)

}  // namespace
}  // namespace ringdp::kernels::gpu
