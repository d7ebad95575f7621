// A matrix in the split 16-bit format, as memory: docs/formats.md describes the planes.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/half.h"

namespace speq {

constexpr int kRowsPerBlock = 4;
constexpr int kBlock = 64;  // columns of a row that share one 32-byte piece of the draft plane

// Escapes keep their column in 16 bits; row blocks times four is a row index of the padded matrix.
constexpr int64_t kMostColumns = 65536, kMostRows = (int64_t{1} << 31) - kBlock;

// The measures of a split matrix, and how many elements each of its planes has.
struct SplitShape {
    int rows = 0, columns = 0;
    int group_size = 64;
    int residual_bits = 10;

    int row_blocks() const { return (rows + kRowsPerBlock - 1) / kRowsPerBlock; }
    int blocks() const { return (columns + kBlock - 1) / kBlock; }
    int padded_columns() const { return blocks() * kBlock; }
    // Groups per row as stored: whole blocks for groups of 32, every second block for groups of 128.
    int groups() const { return group_size == 128 ? (blocks() + 1) / 2 : blocks() * (kBlock / group_size); }
    // Block b has scales of group b >> group_shift() (groups of 32: of two groups, 2 b and 2 b + 1).
    int group_shift() const { return group_size == 128 ? 1 : 0; }
    size_t residual_tile() const { return kRowsPerBlock * (kBlock + (residual_bits == 12 ? 32 : 16)); }

    size_t code_bytes() const { return tiles() * (kRowsPerBlock * kBlock / 2); }
    size_t residual_bytes() const { return tiles() * residual_tile(); }
    size_t scales_count() const { return static_cast<size_t>(row_blocks()) * groups() * kRowsPerBlock; }
    // One more than the rows with their padding.
    size_t escape_offsets() const { return static_cast<size_t>(row_blocks()) * kRowsPerBlock + 1; }

  private:
    size_t tiles() const { return static_cast<size_t>(row_blocks()) * blocks(); }
};

struct SplitWeight : SplitShape {
    const uint8_t* codes = nullptr;
    const uint8_t* residual = nullptr;
    const uint16_t* scales = nullptr;  // BF16
    const uint32_t* escape_rows = nullptr;
    const uint16_t* escape_columns = nullptr;
    const uint16_t* escape_values = nullptr;
    const float* escape_deltas = nullptr;  // of escape_deltas(); the exact products need them
    DType dtype = DType::bf16;
    bool table_per_group = true;  // `nested`; else `e3m0`, whose table belongs to the whole tensor
    alignas(32) float edges[8] = {};
    alignas(32) uint16_t drops[8] = {};
    alignas(32) uint16_t table[8] = {};
    alignas(32) int8_t levels[16] = {};

    // T[c] of a group with this scale.
    template <DType D>
    uint16_t bin_begin(int c, float scale) const {
        if (!table_per_group) return table[c];
        const uint16_t edge = truncate_to<D>(edges[c] * scale);
        return edge > drops[c] ? static_cast<uint16_t>(edge - drops[c]) : uint16_t{0};
    }
    const uint8_t* codes_at(int row_block, int block) const {
        return codes + (static_cast<size_t>(row_block) * blocks() + block) * (kRowsPerBlock * kBlock / 2);
    }
    const uint16_t* scales_at(int row_block) const {
        return scales + static_cast<size_t>(row_block) * groups() * kRowsPerBlock;
    }
};

}  // namespace speq
