#include "ops/channels_tasks.h"

namespace edgeprune {
namespace {

// The strides that matter for merging two neighbouring plain axes into one, for each kind of task.
void strides_of(const GatherAxis& axis, int64_t (&stride)[3]) { stride[0] = stride[1] = stride[2] = axis.stride; }
void strides_of(const ScatterAxis& axis, int64_t (&stride)[3]) {
    stride[0] = axis.total_stride;
    stride[1] = axis.count_stride;
    stride[2] = axis.x_stride;
}

template <class Axis>
bool steps_over(const Axis& outer, const Axis& inner) {
    int64_t a[3], b[3];
    strides_of(outer, a);
    strides_of(inner, b);
    return a[0] == inner.size * b[0] && a[1] == inner.size * b[1] && a[2] == inner.size * b[2];
}

template <class Axis>
bool unit_stride(const Axis& axis) {
    int64_t stride[3];
    strides_of(axis, stride);
    return stride[0] == 1 && stride[1] == 1 && stride[2] == 1;
}

bool is_run(const Index& index) {
    // Kept positions are mostly increasing, so the last one tells without a walk when they are no run.
    if (index.data[index.size - 1] - index.data[0] != index.size - 1) return false;
    for (int64_t i = 1; i < index.size; ++i)
        if (index.data[i] != index.data[i - 1] + 1) return false;
    return true;
}

// Appends an axis, joining it with the one before when both are plain and memory continues from one to the other.
template <class Task, class Axis>
void append(Task& task, const Axis& axis, int64_t* limit, int64_t source_size) {
    if (task.axes && !axis.index && !task.axis[task.axes - 1].index && steps_over(task.axis[task.axes - 1], axis)) {
        Axis joined = axis;
        joined.size *= task.axis[task.axes - 1].size;
        task.axis[task.axes - 1] = joined;
        if (limit) limit[task.axes - 1] = joined.size;
        return;
    }
    if (limit) limit[task.axes] = source_size;
    task.axis[task.axes++] = axis;
}

// The kernels want the last axis to be a block and the one before to count items.
template <class Task, class Axis>
void close(Task& task, Axis one, int64_t* limit) {
    if (task.axes == 0 || task.axis[task.axes - 1].index || !unit_stride(task.axis[task.axes - 1]))
        append(task, one, nullptr, 1);
    // append() may have joined `one` to the last axis only if that was plain with stride 1, which was excluded above.
    if (limit) limit[task.axes - 1] = task.axis[task.axes - 1].size;
    if (task.axes == 1) {
        task.axis[1] = task.axis[0];
        task.axis[0] = one;
        if (limit) {
            limit[1] = limit[0];
            limit[0] = 1;
        }
        task.axes = 2;
    }
}

}  // namespace

GatherTask make_task(const GatherCall& call, bool read_index, int64_t* limit) {
    GatherTask task{};
    task.src = static_cast<const float*>(call.x.data);
    task.dst = static_cast<float*>(call.out.data);
    for (int d = 0; d < call.x.dims; ++d) {
        const Index& index = call.index[d];
        GatherAxis axis{call.out.shape[d], call.x.stride[d], index.data};
        if (axis.size == 0) return {task.src, task.dst, 2, {{0, 1, nullptr}, {1, 1, nullptr}}, {}};
        if (axis.index && read_index && is_run(index)) {
            task.src += index.data[0] * axis.stride;
            axis.index = nullptr;
        }
        if (axis.size > 1 || axis.index) append(task, axis, limit, call.x.shape[d]);
    }
    close(task, GatherAxis{1, 1, nullptr}, limit);
    return task;
}

ScatterTask make_task(const ScatterCall& call, float weight, bool read_index, int64_t* limit) {
    ScatterTask task{};
    task.total = static_cast<float*>(call.total.data);
    task.count = static_cast<float*>(call.count.data);
    task.x = static_cast<const float*>(call.x.data);
    task.weight = weight;
    for (int d = 0; d < call.total.dims; ++d) {
        const Index& index = call.index[d];
        ScatterAxis axis{call.x.shape[d], call.total.stride[d], call.count.stride[d], call.x.stride[d], index.data};
        if (axis.size == 0) {
            task.axes = 2;
            task.axis[0] = {0, 1, 1, 1, nullptr};
            task.axis[1] = {1, 1, 1, 1, nullptr};
            return task;
        }
        if (axis.index && read_index && is_run(index)) {
            task.total += index.data[0] * axis.total_stride;
            task.count += index.data[0] * axis.count_stride;
            axis.index = nullptr;
        }
        if (axis.size > 1 || axis.index) append(task, axis, limit, call.total.shape[d]);
    }
    close(task, ScatterAxis{1, 1, 1, 1, nullptr}, limit);
    return task;
}

NormsTask make_task(const NormsCall& call) {
    NormsTask task{static_cast<const float*>(call.x.data),
                   static_cast<float*>(call.out.data),
                   1,
                   call.x.shape[call.dim],
                   1,
                   call.p};
    for (int d = 0; d < call.dim; ++d) task.before *= call.x.shape[d];
    for (int d = call.dim + 1; d < call.x.dims; ++d) task.after *= call.x.shape[d];
    return task;
}

FinishTask make_task(const FinishCall& call) {
    return {static_cast<const float*>(call.base.data), static_cast<const float*>(call.total.data),
            static_cast<const float*>(call.count.data), static_cast<float*>(call.out.data)};
}

}  // namespace edgeprune
