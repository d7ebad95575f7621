// Split formats and the planes of a matrix as Python hands them over, checked before native code trusts them: the one
// way in, for the codec and for the step.
#pragma once
#include <nanobind/nanobind.h>

#include <string>
#include <vector>

#include "bind/arrays.h"
#include "core/split.h"

namespace speq {

// What speq.formats.Spec says. Throws std::invalid_argument for what no Spec can say.
SplitFormat checked_format(const std::string& dtype, bool table_per_group, int residual_bits, int group_size,
                           const Array<const float>& edges, const Array<const uint16_t>& drops,
                           const Array<const int8_t>& levels);

// The format with the table of a tensor.
SplitFormat with_table(const SplitFormat& format, const Array<const uint16_t>& table);

// The planes of a speq.formats.SplitTensor.
struct PlaneArrays {
    Array<const uint8_t> codes, residual;
    Array<const uint16_t> scales;
    Array<const uint32_t> escape_rows;
    Array<const uint16_t> escape_columns, escape_values, table;
};

// Keeps arrays alive.
using Held = std::vector<nanobind::ndarray<>>;

template <class... Arrays>
void hold(Held& held, const Arrays&... arrays) {
    (held.emplace_back(arrays.handle()), ...);
}

// What Python calls a Matrix: a weight and the arrays that it is a view of. The devtools take it as well.
struct HeldWeight {
    SplitWeight weight;
    Held planes;
};

// A view of planes that fit a matrix of this shape.
SplitWeight checked_weight(const SplitFormat& format, int64_t rows, int64_t columns, const PlaneArrays& planes);

}  // namespace speq
