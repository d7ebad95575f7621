// The memory that the exact product of many tokens works in.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/split.h"

namespace speq {

constexpr int kStripBlocks = 8;  // blocks of a row that are multiplied together, so that the strip of x stays in the L1
                                 // cache
constexpr int kGroup = 2;        // row blocks that go through a strip together: x comes from the L2 cache once for both
constexpr int kStrip = kRowsPerBlock * kStripBlocks * kBlock;  // floats
// The activations of escapes are gathered for at most so many escapes of a group; else they are looked up where they
// are.
constexpr uint32_t kGatheredEscapes = 512;

struct ManyScratch {
    ManyScratch(int tokens, float* memory)
        : strip(memory),
          acc(strip + kGroup * kStrip),
          gathered(acc + static_cast<size_t>(kGroup) * kRowsPerBlock * 8 * tokens),
          sums(gathered + kGatheredEscapes * padded(tokens)),
          wanted(reinterpret_cast<uint32_t*>(sums + padded(tokens))) {}

    static size_t padded(int tokens) { return (static_cast<size_t>(tokens) + 7) / 8 * 8; }
    // Floats in all.
    static size_t size(int tokens) {
        return kGroup * kStrip + static_cast<size_t>(kGroup) * kRowsPerBlock * 8 * tokens +
               (kGatheredEscapes + 1) * padded(tokens) + kGatheredEscapes;
    }

    float* strip;      // [kGroup] strips of decoded weights
    float* acc;        // [kGroup][tokens][4 rows][8]
    float* gathered;   // [escape of the group][padded tokens]: its column of x
    float* sums;       // [padded tokens] of one row
    uint32_t* wanted;  // escapes of the strip
};

// Floats of scratch that Kernels::exact_rows needs for so many tokens.
inline size_t exact_scratch(int tokens) { return ManyScratch::size(tokens); }

}  // namespace speq
