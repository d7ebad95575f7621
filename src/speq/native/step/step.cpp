#include "step/step.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <utility>

#include "core/user_error.h"
#include "gemm/escape_deltas.h"
#include "gemm/many_scratch.h"

namespace speq {

Step::Step(const std::string& isa, int threads, int max_tokens, Cache cache, std::vector<float> inverse_frequencies,
           float rotary_scale, int vocab_size)
    : kernels_(speq::kernels(isa)),
      threads_(threads),
      max_tokens_(max_tokens),
      cache_(cache),
      inverse_frequencies_(std::move(inverse_frequencies)),
      rotary_scale_(rotary_scale),
      vocab_size_(vocab_size),
      team_(threads, [this](int worker, uint32_t run) { work(worker, run); }) {}

int Step::add_buffer(int width) {
    require_open();
    require(width >= 1 && width <= kMostWidth, "a buffer cannot have " + std::to_string(width) + " columns");
    const int stride = (width + kBlock - 1) / kBlock * kBlock;
    buffers_.push_back({width, stride, make_aligned<float>(static_cast<size_t>(max_tokens_) * stride)});
    return static_cast<int>(buffers_.size()) - 1;
}

int Step::add_matrix(const SplitWeight& weight) {
    require_open();
    auto deltas = escape_deltas(weight);
    SplitWeight complete = weight;
    complete.escape_deltas = deltas.get();
    matrices_.push_back({complete, kernels_.exact_rows(weight), kernels_.prepare_row(weight),
                         kernels_.prepare_few(weight), kernels_.draft_rows(weight),
                         kernels_.drafts_few ? kernels_.prepare_draft(weight) : nullptr,
                         kernels_.drafts_few ? kernels_.draft_few(weight) : nullptr, kernels_.quantise(weight),
                         kernels_.decode_row(weight), std::move(deltas)});
    return static_cast<int>(matrices_.size()) - 1;
}

int Step::add_tap(int width) {
    const int stride = (width + kBlock - 1) / kBlock * kBlock;
    taps_.push_back({width, stride, nullptr});
    return static_cast<int>(taps_.size()) - 1;
}

void Step::reserve_attention(int heads, int group, int head_dim) {
    const int rows = kAttentionTokens * group, state = attention_state(head_dim);
    attention_scratch_ =
        std::max(attention_scratch_, attention_scratch(rows, head_dim) + 2 * static_cast<size_t>(rows) * state);
    queries_ = std::max(queries_, static_cast<size_t>(rows) * head_dim);
    tree_ = std::max(tree_, static_cast<size_t>(kTreeRows) * head_dim);
    attention_token_ = std::max(attention_token_, heads * state);
}

void Step::bind() {
    require_open();
    int columns = 0;
    for (const auto& m : matrices_) columns = std::max(columns, m.weight.padded_columns());
    scratch_.resize(threads_);
    for (auto& s : scratch_) {
        s.input = make_aligned<float>(static_cast<size_t>(kFewTokens) * columns);
        s.rows = make_aligned<float>(static_cast<size_t>(kFewTokens) * columns);
        s.draft = DraftInput(columns);
        const int results = std::max(kFewTokens * kFewTokensChunk, max_tokens_ * kManyTokensChunk);
        const size_t product = static_cast<size_t>(results) * kRowsPerBlock;
        s.product = make_aligned<float>(product);
        s.product2 = make_aligned<float>(product);
        s.strip = make_aligned<float>(exact_scratch(max_tokens_));
        s.attention = make_aligned<float>(attention_scratch_);
        s.queries = make_aligned<float>(queries_);
        s.tree_keys = make_aligned<uint16_t>(tree_);
        s.tree_values = make_aligned<uint16_t>(tree_);
    }
    shared_input_ = make_aligned<float>(static_cast<size_t>(max_tokens_) * columns);
    cosines_ = make_aligned<float>(static_cast<size_t>(max_tokens_) * half());
    sines_ = make_aligned<float>(static_cast<size_t>(max_tokens_) * half());
    bound_ = true;
}

void Step::prepare_rotation(const Pass& pass) {
    for (int t = 0; t < pass.count(); ++t)
        for (int i = 0; i < half(); ++i) {
            const float angle = static_cast<float>(pass.positions[t]) * inverse_frequencies_[i];
            const size_t at = static_cast<size_t>(t) * half() + i;
            cosines_[at] = static_cast<float>(std::cos(static_cast<double>(angle))) * rotary_scale_;
            sines_[at] = static_cast<float>(std::sin(static_cast<double>(angle))) * rotary_scale_;
        }
}

// Memory for rows of logits that nobody holds. The caller often holds the logits of the pass before while it asks for
// the next ones, so two pieces are kept.
std::shared_ptr<float[]> Step::take_logits(int rows) {
    if (rows == 0) return nullptr;
    Output* chosen = nullptr;
    for (Output& used : used_outputs_) {
        const bool is_free = used.logits.use_count() <= 1;
        const bool was_free = chosen && chosen->logits.use_count() <= 1;
        if (!chosen || (is_free && (!was_free || (chosen->rows < rows && used.rows > chosen->rows)))) chosen = &used;
    }
    if (chosen->rows < rows || chosen->logits.use_count() > 1)
        *chosen = {rows, make_aligned<float>(static_cast<size_t>(rows) * vocab_size_)};
    std::atomic_thread_fence(std::memory_order_acquire);  // what the last holder read comes before what is written now
    return chosen->logits;
}

// Memory that depends on what the pass is: logits, taps, and the states of chunks that several tasks compute.
void Step::make_room(const Pass& pass) {
    const int rows = static_cast<int>(pass.wanted.size());
    output_ = {};
    output_ = {rows, take_logits(rows)};
    drawn_.assign(pass.draws.size(), {});
    for (size_t i = 0; i < taps_.size(); ++i)
        if (pass.taps[i] && !taps_[i].data)
            taps_[i].data = make_aligned<float>(static_cast<size_t>(max_tokens_) * taps_[i].stride);
    size_t states = 0;
    for (const auto& span : pass.spans)
        if (span.count <= kAttentionTokens)
            states += (static_cast<size_t>(span.start + span.deepest) / kAttentionChunk + 1) * span.count;
    states *= attention_token_;
    if (states > attention_states_size_) {
        attention_states_size_ = 2 * states;
        attention_states_ = make_aligned<float>(attention_states_size_);
    }
}

// With the interpreter's lock released here, and one day perhaps without one, any number of threads may be inside at
// once. Nothing of the step is read or written before run_mutex_ is held: what never changes after bind() aside,
// workers see what the caller wrote through pass_mutex_ and runs_, and the caller sees what they wrote through the
// stages that it waits for; a worker that is late finds another run's number under pass_mutex_ and touches nothing. No
// code below calls back into Python, so the mutex is never wanted by the thread that has it.
void Step::run(std::shared_ptr<const Pass> pass) {
    if (!team_.is_here())
        throw UserError(
            "this model was loaded before the process was forked, and its threads stayed in the parent: load it in "
            "this process, or start processes with multiprocessing's \"spawn\"");
    const std::lock_guard running(run_mutex_);
    make_room(*pass);
    prepare_rotation(*pass);
    {
        const std::lock_guard lock(pass_mutex_);
        pass_ = std::move(pass);
        pass_run_ = team_.next_run();
    }
    team_.run();
}

Output Step::output() {
    const std::lock_guard running(run_mutex_);
    return output_;
}

std::vector<Drawn> Step::draws() {
    const std::lock_guard running(run_mutex_);
    return drawn_;
}

void Step::work(int worker, uint32_t run) {
    std::shared_ptr<const Pass> shared;
    {
        const std::lock_guard lock(pass_mutex_);
        if (pass_run_ != run) return;  // too late: the run is over and the next one has begun
        shared = pass_;
    }
    const Pass& pass = *shared;
    for (size_t i = pass.first; i < pass.last; ++i) {
        auto& op = operators_[i];
        const int total = op->tasks(*this, pass);
        if (total == 0) continue;
        Stage& stage = *stages_[i];
        Tasks tasks(stage, run, total, worker);
        op->run(*this, pass, tasks, worker);
        team_.wait(stage, run, total);
    }
}

}  // namespace speq
