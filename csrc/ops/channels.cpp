#include "ops/channels.h"

#include <deque>

#include "base/isa.h"
#include "base/threads.h"
#include "ops/channels_tasks.h"

namespace edgeprune {
namespace {

#define EDGEPRUNE_ENTRY(isa) &channels_##isa,
const ChannelsKernels* const kVariants[] = {EDGEPRUNE_FOR_EACH_ISA(EDGEPRUNE_ENTRY)};
#undef EDGEPRUNE_ENTRY

// A piece of work for one thread: about as much as its second-level cache holds, so that threads that are slower or
// interrupted take fewer pieces. Below kAlone a call is not worth waking anybody (a wake-up costs 5 to 10 us).
constexpr int64_t kPieceElements = 32 * 1024;
constexpr int64_t kAlone = 64 * 1024;

struct Piece {
    int task;
    int64_t first, last;
};

// Cuts tasks into pieces of about kPieceElements and runs them. units(task) and elements_per_unit(task) describe a
// task, `run(task number, first unit, last unit)` does a piece; cuts fall on multiples of step(task) units.
template <class Tasks, class Units, class UnitSize, class Step, class Run>
void run_pieces(const Tasks& tasks, int threads, Units units, UnitSize unit_size, Step step, Run run) {
    int64_t elements = 0;
    for (const auto& task : tasks) elements += units(task) * unit_size(task);
    if (threads <= 1 || elements < kAlone) {
        for (size_t i = 0; i < tasks.size(); ++i)
            if (units(tasks[i])) run(static_cast<int>(i), 0, units(tasks[i]));
        return;
    }
    std::vector<Piece> pieces;
    for (size_t i = 0; i < tasks.size(); ++i) {
        const int64_t all = units(tasks[i]);
        const int64_t one = step(tasks[i]);
        int64_t each = kPieceElements / (unit_size(tasks[i]) ? unit_size(tasks[i]) : 1) / one * one;
        if (each < one) each = one;
        for (int64_t first = 0; first < all; first += each)
            pieces.push_back({static_cast<int>(i), first, first + each < all ? first + each : all});
    }
    parallel_pieces(threads, static_cast<int64_t>(pieces.size()), [&](int64_t p) {
        const Piece& piece = pieces[static_cast<size_t>(p)];
        run(piece.task, piece.first, piece.last);
    });
}

template <class Task>
int64_t task_units(const Task& task) {
    int64_t units = 1;
    for (int a = 0; a + 1 < task.axes; ++a) units *= task.axis[a].size;
    return units;
}

template <class Task>
int64_t task_block(const Task& task) {
    return task.axis[task.axes - 1].size;
}

// Whole rows where rows are short, single items where they are long.
template <class Task>
int64_t task_step(const Task& task) {
    const int64_t items = task.axis[task.axes - 2].size;
    return items * task_block(task) <= kPieceElements ? items : 1;
}

// One long block (a tensor kept whole) becomes items of kPieceElements and a rest, so that threads can share it.
void push_shared(std::vector<GatherTask>& tasks, GatherTask task) {
    const int64_t block = task_block(task);
    if (task_units(task) == 1 && block > kPieceElements) {
        GatherTask rest = task;
        const int64_t items = block / kPieceElements;
        task.axis[task.axes - 2] = {items, kPieceElements, nullptr};
        task.axis[task.axes - 1].size = kPieceElements;
        rest.src += items * kPieceElements;
        rest.dst += items * kPieceElements;
        rest.axis[rest.axes - 1].size = block % kPieceElements;
        tasks.push_back(task);
        if (rest.axis[rest.axes - 1].size) tasks.push_back(rest);
        return;
    }
    tasks.push_back(task);
}

void push_shared(std::vector<ScatterTask>& tasks, ScatterTask task) {
    const int64_t block = task_block(task);
    if (task_units(task) == 1 && block > kPieceElements) {
        ScatterTask rest = task;
        const int64_t items = block / kPieceElements, whole = items * kPieceElements;
        task.axis[task.axes - 2] = {items, kPieceElements, kPieceElements, kPieceElements, nullptr};
        task.axis[task.axes - 1].size = kPieceElements;
        rest.total += whole;
        rest.count += whole;
        rest.x += whole;
        rest.axis[rest.axes - 1].size = block - whole;
        tasks.push_back(task);
        if (rest.axis[rest.axes - 1].size) tasks.push_back(rest);
        return;
    }
    tasks.push_back(task);
}

// Kept positions as bits where that pays: single elements side by side, several rows that share the work of making the
// words, and at least every sixth position kept (else most vectors hold nothing).
class Keeper {
  public:
    explicit Keeper(Isa isa) : vectors_(isa != Isa::scalar) {}

    template <class Task>
    void add_bits(Task& task, bool unit_stride) {
        const auto& items = task.axis[task.axes - 2];
        if (!vectors_ || !unit_stride || !items.index || task_block(task) != 1 || task_units(task) < 4 * items.size)
            return;
        const int64_t first = items.index[0], span = items.index[items.size - 1] - first + 1;
        if (items.size < 8 || span > 6 * items.size) return;
        for (int64_t i = 1; i < items.size; ++i)
            if (items.index[i] <= items.index[i - 1]) return;
        words_.emplace_back((span + 15) / 16);
        for (int64_t i = 0; i < items.size; ++i) {
            const int64_t position = items.index[i] - first;
            words_.back()[position / 16] |= static_cast<uint16_t>(1u << (position % 16));
        }
        task.keep = {words_.back().data(), span};
    }

  private:
    bool vectors_;
    std::deque<std::vector<uint16_t>> words_;
};

// The number that error sentences give a tensor: none when there is only one.
int number(size_t i, size_t calls) { return calls == 1 ? -1 : static_cast<int>(i); }

}  // namespace

void gather_many(const std::vector<GatherCall>& calls, const CpuOptions& options) {
    const ChannelsKernels& kernels = choose_variant("gather", kVariants, options.variant);
    for (size_t i = 0; i < calls.size(); ++i) check(calls[i], number(i, calls.size()), Device::cpu, true);
    std::vector<GatherTask> tasks;
    tasks.reserve(calls.size());
    for (const GatherCall& call : calls) push_shared(tasks, make_task(call, true, nullptr));
    Keeper keeper(kernels.isa);
    for (GatherTask& task : tasks) keeper.add_bits(task, task.axis[task.axes - 2].stride == 1);
    run_pieces(tasks, options.threads, task_units<GatherTask>, task_block<GatherTask>, task_step<GatherTask>,
               [&](int t, int64_t first, int64_t last) { kernels.gather(tasks[static_cast<size_t>(t)], first, last); });
}

void scatter_accumulate_many(const std::vector<ScatterCall>& calls, float weight, const CpuOptions& options) {
    const ChannelsKernels& kernels = choose_variant("scatter_accumulate", kVariants, options.variant);
    for (size_t i = 0; i < calls.size(); ++i) check(calls[i], number(i, calls.size()), Device::cpu, true);
    std::vector<ScatterTask> tasks;
    tasks.reserve(calls.size());
    for (const ScatterCall& call : calls) push_shared(tasks, make_task(call, weight, true, nullptr));
    Keeper keeper(kernels.isa);
    for (ScatterTask& task : tasks) {
        const ScatterAxis& items = task.axis[task.axes - 2];
        keeper.add_bits(task, items.total_stride == 1 && items.count_stride == 1 && items.x_stride == 1);
    }
    run_pieces(
        tasks, options.threads, task_units<ScatterTask>, task_block<ScatterTask>, task_step<ScatterTask>,
        [&](int t, int64_t first, int64_t last) { kernels.scatter(tasks[static_cast<size_t>(t)], first, last); });
}

void channel_norms_many(const std::vector<NormsCall>& calls, const CpuOptions& options) {
    const ChannelsKernels& kernels = choose_variant("channel_norms", kVariants, options.variant);
    std::vector<NormsTask> tasks;
    for (const NormsCall& call : calls) {
        check(call, Device::cpu);
        tasks.push_back(make_task(call));
    }
    run_pieces(
        tasks, options.threads, [](const NormsTask& task) { return task.channels; },
        [](const NormsTask& task) { return task.before * task.after; },
        // as many channels as the kernels walk together, see channels_simd.h
        [](const NormsTask& task) { return task.after == 1   ? 64
                                           : task.before > 1 ? 16
                                                             : 1; },
        [&](int t, int64_t first, int64_t last) { kernels.norms(tasks[static_cast<size_t>(t)], first, last); });
}

void merge_finish_many(const std::vector<FinishCall>& calls, const CpuOptions& options) {
    const ChannelsKernels& kernels = choose_variant("merge_finish", kVariants, options.variant);
    for (size_t i = 0; i < calls.size(); ++i) check(calls[i], number(i, calls.size()), Device::cpu);
    std::vector<FinishTask> tasks;
    std::vector<int64_t> sizes;
    for (const FinishCall& call : calls) {
        tasks.push_back(make_task(call));
        sizes.push_back(call.base.size());
    }
    run_pieces(
        tasks, options.threads,
        [&](const FinishTask& task) { return sizes[static_cast<size_t>(&task - tasks.data())]; },
        [](const FinishTask&) { return 1; }, [](const FinishTask&) { return 1; },
        [&](int t, int64_t first, int64_t last) { kernels.finish(tasks[static_cast<size_t>(t)], first, last); });
}

}  // namespace edgeprune
