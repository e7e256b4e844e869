// From checked calls to kernel tasks: used by ops/channels.cpp (CPU) and ops/channels_cuda.cpp.
#pragma once

#include "kernels/channels/channels.h"
#include "ops/channels.h"

namespace edgeprune {

// Check shapes, types, devices and (check_values) index values; `tensor` is the position in the list, -1 for none.
void check(const GatherCall& call, int tensor, Device device, bool check_values);
void check(const ScatterCall& call, int tensor, Device device, bool check_values);
void check(const NormsCall& call, Device device);
void check(const FinishCall& call, int tensor, Device device);

// Fewest axes that describe the work. With `read_index`, axes whose index is one run or one position become plain
// ones (the values are read, so they must be on the host). `limit`, when given, takes each axis' size in the source.
GatherTask make_task(const GatherCall& call, bool read_index, int64_t* limit);
ScatterTask make_task(const ScatterCall& call, float weight, bool read_index, int64_t* limit);
NormsTask make_task(const NormsCall& call);
FinishTask make_task(const FinishCall& call);

}  // namespace edgeprune
