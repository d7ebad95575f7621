#include "step/operators.h"

#include <algorithm>
#include <stdexcept>

#include "step/product.h"

namespace speq {
namespace {

class Embed final : public Operator {
  public:
    Embed(int matrix, int out) : matrix_(matrix), out_(out) {}
    int tasks(Step&, const Pass& pass) const override { return pass.count(); }
    void run(Step& step, const Pass& pass, Tasks& tasks, int) override {
        const BoundWeight& table = step.matrix(matrix_);
        tasks.each([&](int t) { table.decode_row(table.weight, pass.tokens[t], step.buffer(out_).row(t)); });
    }

  private:
    int matrix_, out_;
};

// Many tokens are normalised and prepared once, together, before the product that asked for it; few are left to each
// worker.
class PackRows final : public Operator {
  public:
    PackRows(int x, Norm norm, Kernels::PrepareRow prepare, bool for_logits = false)
        : x_(x), norm_(norm), prepare_(prepare), for_logits_(for_logits) {}

    int tasks(Step&, const Pass& pass) const override {
        const bool used_as_it_is = !norm_.weight && !for_logits_ && (pass.is_draft() || !prepare_);
        const int rows = for_logits_ ? static_cast<int>(pass.wanted.size()) : pass.count();
        return rows > kFewTokens && !used_as_it_is ? rows : 0;
    }

    void run(Step& step, const Pass& pass, Tasks& tasks, int) override {
        Buffer& x = step.buffer(x_);
        tasks.each([&](int t) {
            float* out = step.shared_input() + static_cast<size_t>(t) * x.stride;
            const float* row = x.row(for_logits_ ? pass.wanted[t] : t);
            if (norm_.weight) {
                step.kernels().rms_norm(row, norm_.weight, x.width, x.stride, norm_.eps, out);
                row = out;
            }
            if (!pass.is_draft() && prepare_)
                prepare_(row, x.stride, out);
            else if (row != out)
                std::copy_n(row, x.stride, out);
        });
    }

  private:
    int x_;
    Norm norm_;
    Kernels::PrepareRow prepare_;
    bool for_logits_;
};

void add_bias(float* values, const LinearPart& part, int first, int rows) {
    if (part.has_bias)
        for (int i = 0; i < rows; ++i) values[i] += part.bias[first + i];
}

class Linear final : public Operator {
  public:
    Linear(int x, Norm norm, std::vector<LinearPart> parts, int out, bool accumulate)
        : x_(x), norm_(norm), parts_(std::move(parts)), out_(out), accumulate_(accumulate) {}

    int tasks(Step& step, const Pass& pass) const override { return chunks(step, pass).count(); }

    void run(Step& step, const Pass& pass, Tasks& tasks, int worker) override {
        ProductInput input(step, pass, worker, step.buffer(x_), norm_);
        const Chunks chunks = this->chunks(step, pass);
        tasks.each([&](int task) {
            const int begin = chunks.begin(task), end = chunks.end(task);
            int first = 0;  // of the part, in row blocks of all parts
            for (const auto& part : parts_) {
                const BoundWeight& m = step.matrix(part.matrix);
                const int last = first + m.weight.row_blocks();
                if (begin < last && end > first)
                    multiply(step, input, part, m, std::max(begin, first) - first, std::min(end, last) - first, worker);
                first = last;
            }
        });
    }

  private:
    Chunks chunks(Step& step, const Pass& pass) const {
        int total = 0;
        for (const auto& part : parts_) total += step.matrix(part.matrix).weight.row_blocks();
        return {total, step.threads(), pass.count()};
    }

    void multiply(Step& step, ProductInput& input, const LinearPart& part, const BoundWeight& m, int begin, int end,
                  int worker) {
        const float* y = step.scratch(worker).product.get();
        input.multiply(m, begin, end, step.scratch(worker).product.get());
        const int first = begin * kRowsPerBlock, rows = std::min(end * kRowsPerBlock, m.weight.rows) - first;
        for (int t = 0; t < input.count(); ++t) {
            float values[kFewTokensChunk * kRowsPerBlock];
            gather_token(y, begin, end, t, input.count(), values);
            float* out = step.buffer(out_).row(t) + part.column + first;
            add_bias(values, part, first, rows);
            if (accumulate_)
                for (int i = 0; i < rows; ++i) out[i] += values[i];
            else
                std::copy_n(values, rows, out);
        }
    }

    int x_;
    Norm norm_;
    std::vector<LinearPart> parts_;
    int out_;
    bool accumulate_;
};

class GatedLinear final : public Operator {
  public:
    GatedLinear(int x, Norm norm, LinearPart gate, LinearPart up, int out)
        : x_(x), norm_(norm), gate_(gate), up_(up), out_(out) {}

    int tasks(Step& step, const Pass& pass) const override { return chunks(step, pass).count(); }

    void run(Step& step, const Pass& pass, Tasks& tasks, int worker) override {
        ProductInput input(step, pass, worker, step.buffer(x_), norm_);
        const BoundWeight &gate = step.matrix(gate_.matrix), &up = step.matrix(up_.matrix);
        Scratch& scratch = step.scratch(worker);
        const Chunks chunks = this->chunks(step, pass);
        tasks.each([&](int task) {
            const int begin = chunks.begin(task), end = chunks.end(task);
            input.multiply(gate, begin, end, scratch.product.get());
            input.multiply(up, begin, end, scratch.product2.get());
            const int first = begin * kRowsPerBlock, rows = std::min(end * kRowsPerBlock, gate.weight.rows) - first;
            for (int t = 0; t < pass.count(); ++t) {
                float g[kFewTokensChunk * kRowsPerBlock], u[kFewTokensChunk * kRowsPerBlock];
                gather_token(scratch.product.get(), begin, end, t, pass.count(), g);
                gather_token(scratch.product2.get(), begin, end, t, pass.count(), u);
                add_bias(g, gate_, first, rows);
                add_bias(u, up_, first, rows);
                step.kernels().swiglu(g, u, rows);
                std::copy_n(g, rows, step.buffer(out_).row(t) + first);
            }
        });
    }

  private:
    Chunks chunks(Step& step, const Pass& pass) const {
        return {step.matrix(gate_.matrix).weight.row_blocks(), step.threads(), pass.count()};
    }

    int x_;
    Norm norm_;
    LinearPart gate_, up_;
    int out_;
};

class LMHead final : public Operator {
  public:
    LMHead(int x, Norm norm, int matrix) : x_(x), norm_(norm), matrix_(matrix) {}

    int tasks(Step& step, const Pass& pass) const override {
        return pass.wanted.empty() ? 0 : chunks(step, pass).count();
    }

    void run(Step& step, const Pass& pass, Tasks& tasks, int worker) override {
        ProductInput input(step, pass, worker, step.buffer(x_), norm_, &pass.wanted);
        const BoundWeight& m = step.matrix(matrix_);
        const Chunks chunks = this->chunks(step, pass);
        float* y = step.scratch(worker).product.get();
        tasks.each([&](int task) {
            const int begin = chunks.begin(task), end = chunks.end(task);
            input.multiply(m, begin, end, y);
            const int first = begin * kRowsPerBlock, rows = std::min(end * kRowsPerBlock, m.weight.rows) - first;
            for (int t = 0; t < input.count(); ++t) {
                float values[kFewTokensChunk * kRowsPerBlock];
                gather_token(y, begin, end, t, input.count(), values);
                std::copy_n(values, rows, step.logits_row(t) + first);
            }
        });
    }

  private:
    Chunks chunks(Step& step, const Pass& pass) const {
        return {step.matrix(matrix_).weight.row_blocks(), step.threads(), static_cast<int>(pass.wanted.size())};
    }

    int x_;
    Norm norm_;
    int matrix_;
};

class Sample final : public Operator {
  public:
    int tasks(Step&, const Pass& pass) const override { return static_cast<int>(pass.draws.size()); }
    void run(Step& step, const Pass& pass, Tasks& tasks, int) override {
        tasks.each([&](int i) {
            step.drawn(i) = draw(step.logits_row(i), step.vocab_size(), pass.draws[i], pass.confidences);
        });
    }
};

class Tap final : public Operator {
  public:
    Tap(int x, int tap) : x_(x), tap_(tap) {}

    int tasks(Step&, const Pass& pass) const override {
        return static_cast<size_t>(tap_) < pass.taps.size() && pass.taps[tap_] ? pass.count() : 0;
    }
    void run(Step& step, const Pass&, Tasks& tasks, int) override {
        Buffer &x = step.buffer(x_), &out = step.tap(tap_);
        tasks.each([&](int t) { std::copy_n(x.row(t), x.width, out.row(t)); });
    }

  private:
    int x_, tap_;
};

}  // namespace

void require_buffer(const Step& step, int index) {
    if (index < 0 || static_cast<size_t>(index) >= step.buffers())
        throw std::out_of_range("there is no buffer " + std::to_string(index));
}

void require_width(Step& step, int buffer, int64_t width) {
    require_buffer(step, buffer);
    require(step.buffer(buffer).width == width, "buffer " + std::to_string(buffer) + " has " +
                                                    std::to_string(step.buffer(buffer).width) +
                                                    " columns, the operator needs " + std::to_string(width));
}

void require_norm(const Norm& norm, int width) {
    require(!norm.weight || norm.width == static_cast<size_t>(width),
            "a norm has " + std::to_string(norm.width) + " weights for " + std::to_string(width) + " columns");
}

namespace {

const SplitWeight& checked_matrix(const Step& step, int index) {
    if (index < 0 || static_cast<size_t>(index) >= step.matrices())
        throw std::out_of_range("there is no matrix " + std::to_string(index));
    return step.matrix(index).weight;
}

// The rows of a matrix whose columns are those of its input.
int rows_of_product(Step& step, int x, const Norm& norm, int matrix) {
    const SplitWeight& weight = checked_matrix(step, matrix);
    require_width(step, x, weight.columns);
    require_norm(norm, weight.columns);
    return weight.rows;
}

void require_bias(const LinearPart& part, int rows) {
    require(!part.has_bias || part.bias.size() == static_cast<size_t>(rows),
            "a bias has " + std::to_string(part.bias.size()) + " values for " + std::to_string(rows) + " rows");
}

void require_vocabulary(const Step& step, const SplitWeight& weight) {
    require(weight.rows == step.vocab_size(), "a matrix of " + std::to_string(weight.rows) +
                                                  " rows for a vocabulary of " + std::to_string(step.vocab_size()));
}

}  // namespace

void add_embed(Step& step, int matrix, int out) {
    const SplitWeight& table = checked_matrix(step, matrix);
    require_vocabulary(step, table);
    require_width(step, out, table.columns);
    step.add_operator(std::make_unique<Embed>(matrix, out));
}

void add_linear(Step& step, int x, Norm norm, const std::vector<LinearPart>& parts, int out, bool accumulate) {
    require_buffer(step, out);
    for (const LinearPart& part : parts) {
        const int rows = rows_of_product(step, x, norm, part.matrix);
        require(part.column >= 0 && int64_t{part.column} + rows <= step.buffer(out).width,
                "the results of a product lie outside of their buffer");
        require_bias(part, rows);
    }
    // Matrices of different dtypes want different inputs.
    for (auto first = parts.begin(); first != parts.end();) {
        const auto prepare = step.matrix(first->matrix).prepare_row;
        const auto last =
            std::find_if(first, parts.end(), [&](auto& p) { return step.matrix(p.matrix).prepare_row != prepare; });
        step.add_operator(std::make_unique<PackRows>(x, norm, prepare));
        step.add_operator(std::make_unique<Linear>(x, norm, std::vector(first, last), out, accumulate));
        first = last;
    }
}

void add_gated_linear(Step& step, int x, Norm norm, LinearPart gate, LinearPart up, int out) {
    const int rows = rows_of_product(step, x, norm, gate.matrix);
    require(rows_of_product(step, x, norm, up.matrix) == rows, "the gate and up matrices of a layer differ in rows");
    require_width(step, out, rows);
    for (const LinearPart& part : {gate, up}) require_bias(part, rows);
    const auto prepare = step.matrix(gate.matrix).prepare_row;
    if (prepare != step.matrix(up.matrix).prepare_row)
        throw std::invalid_argument("the gate and up matrices of a layer have different dtypes");
    step.add_operator(std::make_unique<PackRows>(x, norm, prepare));
    step.add_operator(std::make_unique<GatedLinear>(x, norm, gate, up, out));
}

void add_lm_head(Step& step, int x, Norm norm, int matrix) {
    rows_of_product(step, x, norm, matrix);
    require_vocabulary(step, step.matrix(matrix).weight);
    step.add_operator(std::make_unique<PackRows>(x, norm, step.matrix(matrix).prepare_row, true));
    step.add_operator(std::make_unique<LMHead>(x, norm, matrix));
}

void add_sample(Step& step) { step.add_operator(std::make_unique<Sample>()); }

int add_tap(Step& step, int x) {
    require_buffer(step, x);
    const int tap = step.add_tap(step.buffer(x).width);
    step.add_operator(std::make_unique<Tap>(x, tap));
    return tap;
}

}  // namespace speq
