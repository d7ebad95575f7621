// What Python hands over is checked here before native code trusts it: a size that does not fit raises ValueError, an
// index that does not exist IndexError.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>

#include "core/split.h"

namespace speq {

inline void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

inline void require(bool condition, const std::string& message) {
    if (!condition) throw std::invalid_argument(message);
}

// The measures of a matrix to be split or read; everything that is computed from them fits its type.
inline SplitShape checked_shape(const SplitFormat& format, int64_t rows, int64_t columns) {
    require(rows >= 1 && rows <= kMostRows && columns >= 1 && columns <= kMostColumns,
            "a split matrix cannot have the shape " + std::to_string(rows) + " x " + std::to_string(columns));
    return {format, static_cast<int>(rows), static_cast<int>(columns)};
}

// Sizes of the planes, in elements.
inline void require_planes(const SplitShape& shape, size_t codes, size_t residual, size_t scales) {
    require(codes == shape.code_bytes(), "codes plane has the wrong size");
    require(residual == shape.residual_bytes(), "residual plane has the wrong size");
    require(scales == shape.scales_count(), "scales have the wrong size");
}

// The side list of a matrix: `offsets` rise from 0 to the number of escapes, columns rise within a row.
inline void require_escapes(const SplitShape& shape, const uint32_t* offsets, size_t offset_count,
                            const uint16_t* columns, size_t column_count, size_t value_count) {
    require(offset_count == shape.escape_offsets(), "escape offsets have the wrong size");
    require(column_count == value_count, "escape columns and values differ in number");
    require(offsets[0] == 0 && offsets[offset_count - 1] == column_count, "escape offsets do not cover the escapes");
    for (size_t row = 0; row + 1 < offset_count; ++row) {
        require(offsets[row] <= offsets[row + 1] && offsets[row + 1] <= column_count,
                "escape offsets are not ascending");
        for (uint32_t e = offsets[row]; e < offsets[row + 1]; ++e) {
            require(columns[e] < shape.columns, "an escape lies outside its row");
            require(e == offsets[row] || columns[e - 1] < columns[e], "the escapes of a row are not ascending");
        }
    }
}

}  // namespace speq
