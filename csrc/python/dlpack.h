// Tensors from Python as views, over DLPack: the capsules of version 1.0 ("dltensor_versioned") and the older ones
// ("dltensor"), from a capsule itself or from an object with __dlpack__. Only this folder knows Python and DLPack.
#pragma once

#include <pybind11/pybind11.h>

#include "base/view.h"

namespace edgeprune {

// A view and the capsule that keeps its memory alive. Make and destroy it with the GIL held.
struct Borrowed {
    View view;
    pybind11::object owner;
};

// Throws Error (`op`: `name` ...) when the object offers no DLPack, or more than kMaxDims dimensions.
Borrowed borrow(const char* op, const char* name, pybind11::handle object);

}  // namespace edgeprune
