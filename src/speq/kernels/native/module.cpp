// The extension module speq._native. Each source file registers its own functions.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_bandwidth(nb::module_& m);
void bind_codec(nb::module_& m);
void bind_half_product(nb::module_& m);
void bind_sampling(nb::module_& m);
void bind_step(nb::module_& m);

NB_MODULE(_native, m) {
    m.doc() = "Native kernels of speq; see speq.bits, speq.kernels and speq.decoding for the typed interface.";
    bind_bandwidth(m);
    bind_codec(m);
    bind_half_product(m);
    bind_sampling(m);
    bind_step(m);
}
