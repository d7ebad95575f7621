// The extension module speq._native. Each source file registers its own functions.
#include <nanobind/nanobind.h>

#include <exception>

#include "core/user_error.h"

namespace nb = nanobind;

void bind_bandwidth(nb::module_& m);
void bind_codec(nb::module_& m);
void bind_format(nb::module_& m);
void bind_half_product(nb::module_& m);
void bind_released(nb::module_& m);
void bind_sampling(nb::module_& m);
void bind_step(nb::module_& m);

NB_MODULE(_native, m) {
    m.doc() = "Native kernels of speq; see speq.formats, speq.backends.cpu and speq.decoding for the typed interface.";
    // A thread that sleeps while the interpreter ends keeps what it works with: no leak to warn of.
    nb::set_leak_warnings(false);
    nb::register_exception_translator([](const std::exception_ptr& error, void*) {
        try {
            std::rethrow_exception(error);
        } catch (const speq::UserError& e) {
            PyErr_SetString(nb::module_::import_("speq.errors").attr("SpeqError").ptr(), e.what());
        }
    });
    bind_bandwidth(m);
    bind_format(m);
    bind_codec(m);
    bind_half_product(m);
    bind_released(m);
    bind_sampling(m);
    bind_step(m);
}
