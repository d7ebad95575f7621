// The extension module speq._devtools: what tests of the kernels need and a wheel does not contain.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_products(nb::module_& m);

NB_MODULE(_devtools, m) {
    m.doc() = "Single kernels, for tests.";
    nb::set_leak_warnings(false);
    nb::module_::import_("speq._native");  // whose Matrix is the argument
    bind_products(m);
}
