// Keeps everything borrowed for one call alive. None stands for a view that stands for nothing.
#pragma once

#include <deque>
#include <vector>

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
