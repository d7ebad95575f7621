#include "bind/weight.h"

#include <nanobind/stl/string.h>

#include <algorithm>

namespace nb = nanobind;

namespace speq {

SplitFormat checked_format(const std::string& dtype, bool table_per_group, int residual_bits, int group_size,
                           const Array<const float>& edges, const Array<const uint16_t>& drops,
                           const Array<const int8_t>& levels) {
    require(dtype == "bf16" || dtype == "fp16", "dtype must be bf16 or fp16");
    require(group_size == 32 || group_size == 64 || group_size == 128, "group size must be 32, 64 or 128");
    require(edges.size() == 8 && drops.size() == 8 && levels.size() == 16, "tables have the wrong size");
    require_aligned(edges, drops, levels);
    const auto within = [](const auto& values, auto least, auto most) {
        return std::all_of(values.data(), values.data() + values.size(),
                           [&](auto value) { return value >= least && value <= most; });
    };
    require(within(edges, 0.0f, 0x1p20f) && within(drops, 0, 0x7fff) && within(levels, -64, 64),
            "edges, drops or levels are out of range");
    SplitFormat format;
    format.dtype = dtype == "bf16" ? DType::bf16 : DType::fp16;
    format.table_per_group = table_per_group;
    format.group_size = group_size;
    format.residual_bits = residual_bits;
    require(residual_bits == (table_per_group && format.dtype == DType::bf16 ? 10 : 12),
            "residual bits do not fit the format");
    std::copy_n(edges.data(), 8, format.edges);
    std::copy_n(drops.data(), 8, format.drops);
    std::copy_n(levels.data(), 16, format.levels);
    return format;
}

SplitFormat with_table(const SplitFormat& format, const Array<const uint16_t>& table) {
    require(table.size() == 8, "tables have the wrong size");
    require_aligned(table);
    SplitFormat whole = format;
    std::copy_n(table.data(), 8, whole.table);
    return whole;
}

SplitWeight checked_weight(const SplitFormat& format, int64_t rows, int64_t columns, const PlaneArrays& planes) {
    const auto& [codes, residual, scales, escape_rows, escape_columns, escape_values, table] = planes;
    SplitWeight weight{checked_shape(with_table(format, table), rows, columns)};
    require_planes(weight, codes.size(), residual.size(), scales.size());
    require_aligned(scales, escape_rows, escape_columns, escape_values);
    require_escapes(weight, escape_rows.data(), escape_rows.size(), escape_columns.data(), escape_columns.size(),
                    escape_values.size());
    weight.codes = codes.data();
    weight.residual = residual.data();
    weight.scales = scales.data();
    weight.escape_rows = escape_rows.data();
    weight.escape_columns = escape_columns.data();
    weight.escape_values = escape_values.data();
    return weight;
}

}  // namespace speq

void bind_format(nb::module_& m) {
    using namespace speq;
    nb::class_<SplitFormat>(m, "SplitFormat")
        .def(
            "__init__",
            [](SplitFormat* self, const std::string& dtype, bool table_per_group, int residual_bits, int group_size,
               const Array<const float>& edges, const Array<const uint16_t>& drops, const Array<const int8_t>& levels) {
                new (self) SplitFormat(
                    checked_format(dtype, table_per_group, residual_bits, group_size, edges, drops, levels));
            },
            nb::kw_only(), nb::arg("dtype"), nb::arg("table_per_group"), nb::arg("residual_bits"),
            nb::arg("group_size"), nb::arg("edges"), nb::arg("drops"), nb::arg("levels"));
}
