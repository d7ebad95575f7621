// A matrix in the split 16-bit format, as memory: the one native definition of its tiles, bins and planes, which the
// codec and the kernels share. docs/formats.md describes them.
#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "core/half.h"

namespace speq {

constexpr int kRowsPerBlock = 4;
constexpr int kBlock = 64;  // columns of a row that share one 32-byte piece of the draft plane
constexpr int kHalfBlock = kBlock / 2;
constexpr int kCodeTile = kRowsPerBlock * kHalfBlock;  // bytes of the draft plane for a block of four rows

// Bytes for the bits beyond the lower eight of a row's residuals in a block, and for all residuals of four rows.
constexpr int high_bytes(int residual_bits) { return kBlock * (residual_bits - 8) / 8; }
constexpr int residual_tile_bytes(int residual_bits) { return kRowsPerBlock * (kBlock + high_bytes(residual_bits)); }

// Column of a block whose code stands in the low nibble of byte b of the draft plane; the high nibble is half a block
// further. The order of the decoders' instructions; docs/formats.md shows it.
constexpr int column_of_byte(DType dtype, int b) {
    const int lane = b / 16, i = b % 16;
    return dtype == DType::bf16 ? 8 * (2 * (i / 8) + i % 2) + i % 8 / 2 + 4 * lane : 8 * (2 * (i / 8) + lane) + i % 8;
}

// Escapes keep their column in 16 bits; row blocks times four is a row index of the padded matrix.
constexpr int64_t kMostColumns = 65536, kMostRows = (int64_t{1} << 31) - kBlock;

using Bins = std::array<uint16_t, 8>;  // T, the integers at which bins begin

// A split format as speq.formats.Spec describes it, and the table that belongs to one tensor.
struct SplitFormat {
    DType dtype = DType::bf16;
    bool table_per_group = true;  // `nested`; else `e3m0`, whose table belongs to the whole tensor
    int group_size = 64;
    int residual_bits = 10;
    alignas(32) float edges[8] = {};
    alignas(32) uint16_t drops[8] = {};
    alignas(32) uint16_t table[8] = {};
    alignas(32) int8_t levels[16] = {};

    // T[c] of a group with this scale: one float32 multiplication, one truncation, integers. The table makers of the
    // block decoders do the same with vectors. Spec sees to it that the product is zero or a normal number, so flushing
    // subnormals changes nothing.
    template <DType D>
    uint16_t bin_begin(int c, float scale) const {
        return bin_begin(D, c, scale);
    }
    Bins bins(uint16_t scale) const {
        Bins all;
        for (int c = 0; c < 8; ++c) all[c] = bin_begin(dtype, c, bf16_to_float(scale));
        return all;
    }

  private:
    uint16_t bin_begin(DType as, int c, float scale) const {
        if (!table_per_group) return table[c];
        return static_cast<uint16_t>(std::max(truncate_to(as, edges[c] * scale) - drops[c], 0));
    }
};

// A matrix in a split format without its planes: its measures, and how many elements each plane has.
struct SplitShape : SplitFormat {
    int rows = 0, columns = 0;

    int row_blocks() const { return (rows + kRowsPerBlock - 1) / kRowsPerBlock; }
    int blocks() const { return (columns + kBlock - 1) / kBlock; }
    int padded_columns() const { return blocks() * kBlock; }
    // Groups per row as stored: whole blocks for groups of 32, every second block for groups of 128.
    int groups() const { return group_size == 128 ? (blocks() + 1) / 2 : blocks() * (kBlock / group_size); }
    // Block b has scales of group b >> group_shift() (groups of 32: of two groups, 2 b and 2 b + 1).
    int group_shift() const { return group_size == 128 ? 1 : 0; }
    size_t residual_tile() const { return residual_tile_bytes(residual_bits); }

    size_t code_bytes() const { return tiles() * kCodeTile; }
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

    const uint8_t* codes_at(int row_block, int block) const {
        return codes + (static_cast<size_t>(row_block) * blocks() + block) * kCodeTile;
    }
    const uint8_t* residual_at(int row_block, int block) const {
        return residual + (static_cast<size_t>(row_block) * blocks() + block) * residual_tile();
    }
    const uint16_t* scales_at(int row_block) const {
        return scales + static_cast<size_t>(row_block) * groups() * kRowsPerBlock;
    }
};

}  // namespace speq
