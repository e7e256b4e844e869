#include "base/view.h"

namespace edgeprune {

int64_t View::size() const {
    int64_t elements = 1;
    for (int d = 0; d < dims; ++d) elements *= shape[d];
    return elements;
}

bool View::contiguous() const {
    if (size() == 0) return true;
    int64_t expected = 1;
    for (int d = dims - 1; d >= 0; --d) {
        if (shape[d] != 1 && stride[d] != expected) return false;
        expected *= shape[d];
    }
    return true;
}

std::string shape_text(const View& view) {
    std::string text = "(";
    for (int d = 0; d < view.dims; ++d) {
        if (d) text += ", ";
        text += std::to_string(view.shape[d]);
    }
    return text + (view.dims == 1 ? ",)" : ")");
}

bool same_shape(const View& a, const View& b) {
    if (a.dims != b.dims) return false;
    for (int d = 0; d < a.dims; ++d)
        if (a.shape[d] != b.shape[d]) return false;
    return true;
}

}  // namespace edgeprune
