// Keeps everything borrowed for one call alive. None stands for a view that stands for nothing.
#pragma once

#include <deque>
#include <vector>

#include "base/error.h"
#include "python/dlpack.h"

namespace edgeprune {

class Lender {
  public:
    explicit Lender(const char* op) : op_(op) {}
    View view(const char* name, pybind11::handle object) {
        if (object.is_none()) return {};
        kept_.push_back(borrow(op_, name, object));
        return kept_.back().view;
    }
    // `size` contiguous int32 on `device`; -1: however many there are.
    const int32_t* int32s(const char* name, pybind11::handle object, int64_t size, Device device = Device::cpu) {
        const View tensor = view(name, object);
        if (tensor.dtype != DType::i32 || !tensor.contiguous() || tensor.device != device ||
            (size >= 0 && tensor.size() != size))
            fail("%s: %s must be %lld contiguous int32 on the %s, got shape %s", op_, name,
                 static_cast<long long>(size >= 0 ? size : tensor.size()), device == Device::cpu ? "CPU" : "GPU",
                 shape_text(tensor).c_str());
        return static_cast<const int32_t*>(tensor.data);
    }
    std::vector<View> views(const char* name, const pybind11::sequence& objects) {
        std::vector<View> all;
        for (pybind11::handle object : objects) all.push_back(view(name, object));
        return all;
    }

  private:
    const char* op_;
    std::deque<Borrowed> kept_;
};

}  // namespace edgeprune
