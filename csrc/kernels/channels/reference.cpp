// The channels kernels as their contract reads (channels.h): one element at a time, in double.
#include <cmath>

#include "kernels/channels/channels.h"

namespace edgeprune {
namespace {

// Calls visit(position of every axis) for all positions, the last axis fastest.
template <class Task, class Visit>
void for_each_position(const Task& task, Visit visit) {
    int64_t position[kChannelsAxes] = {};
    int64_t elements = 1;
    for (int a = 0; a < task.axes; ++a) elements *= task.axis[a].size;
    for (int64_t element = 0; element < elements; ++element) {
        int64_t rest = element;
        for (int a = task.axes - 1; a >= 0; --a) {
            position[a] = rest % task.axis[a].size;
            rest /= task.axis[a].size;
        }
        visit(element, position);
    }
}

}  // namespace

void channels_gather_reference(const GatherTask& task) {
    for_each_position(task, [&](int64_t element, const int64_t* position) {
        int64_t from = 0;
        for (int a = 0; a < task.axes; ++a) {
            const GatherAxis& axis = task.axis[a];
            from += (axis.index ? axis.index[position[a]] : position[a]) * axis.stride;
        }
        task.dst[element] = task.src[from];
    });
}

void channels_scatter_reference(const ScatterTask& task, double* total, double* count) {
    for_each_position(task, [&](int64_t, const int64_t* position) {
        int64_t to_total = 0, to_count = 0, from = 0;
        for (int a = 0; a < task.axes; ++a) {
            const ScatterAxis& axis = task.axis[a];
            const int64_t where = axis.index ? axis.index[position[a]] : position[a];
            to_total += where * axis.total_stride;
            to_count += where * axis.count_stride;
            from += position[a] * axis.x_stride;
        }
        total[to_total] += static_cast<double>(task.weight) * static_cast<double>(task.x[from]);
        count[to_count] += static_cast<double>(task.weight);
    });
}

void channels_norms_reference(const NormsTask& task, double* norm) {
    for (int64_t c = 0; c < task.channels; ++c) {
        double sum = 0.0;
        for (int64_t b = 0; b < task.before; ++b)
            for (int64_t j = 0; j < task.after; ++j) {
                const double x = task.x[(b * task.channels + c) * task.after + j];
                sum += task.p == 1 ? std::fabs(x) : x * x;
            }
        norm[c] = task.p == 1 ? sum : std::sqrt(sum);
    }
}

double channels_finish_reference(const FinishTask& task, int64_t i) {
    return task.count[i] > 0.0f ? static_cast<double>(task.total[i]) / static_cast<double>(task.count[i])
                                : static_cast<double>(task.base[i]);
}

}  // namespace edgeprune
