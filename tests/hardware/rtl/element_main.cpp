// Feeds operations from standard input to a verilated processing element and writes its accumulator after each of them.
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "Vpe.h"

struct Operation {
    uint64_t activations;
    uint16_t weights;
    uint8_t enable, draft, first;
    std::array<uint8_t, 3> padding;
};

int main(int, char** argv) {
    const long latency = std::strtol(argv[1], nullptr, 10);
    auto context = std::make_unique<VerilatedContext>();
    auto element = std::make_unique<Vpe>(context.get());
    element->rst = 0;
    Operation operation{};
    for (long cycle = 0, end = -1; end < 0 || cycle < end; ++cycle) {
        if (end < 0 && std::fread(&operation, sizeof operation, 1, stdin) != 1) {
            operation.enable = 0;
            end = cycle + latency;
        }
        element->enable = operation.enable;
        element->draft = operation.draft;
        element->first = operation.first;
        element->weights = operation.weights;
        element->activations = operation.activations;
        element->clk = 0;
        element->eval();
        const uint64_t sum = element->accumulator;
        if (cycle >= latency) std::fwrite(&sum, sizeof sum, 1, stdout);
        element->clk = 1;
        element->eval();
    }
}
