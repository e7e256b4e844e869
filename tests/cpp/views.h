// Views of a test's memory: contiguous, of the element's own type unless another is given.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/view.h"

namespace test {

using edgeprune::Device, edgeprune::DType, edgeprune::View;

template <class T>
constexpr DType kType = DType::other;
template <>
inline constexpr DType kType<float> = DType::f32;
template <>
inline constexpr DType kType<uint8_t> = DType::u8;
template <>
inline constexpr DType kType<int32_t> = DType::i32;
template <>
inline constexpr DType kType<int64_t> = DType::i64;

inline View view_of(const void* data, DType dtype, const std::vector<int64_t>& shape, Device device = Device::cpu) {
    View view;
    view.data = const_cast<void*>(data);
    view.dtype = dtype;
    view.device = device;
    view.dims = static_cast<int>(shape.size());
    int64_t stride = 1;
    for (int d = view.dims - 1; d >= 0; --d) {
        view.shape[d] = shape[static_cast<size_t>(d)];
        view.stride[d] = stride;
        stride *= view.shape[d];
    }
    return view;
}

template <class T>
View view_of(const std::vector<T>& data, const std::vector<int64_t>& shape, Device device = Device::cpu) {
    return view_of(data.data(), kType<T>, shape, device);
}

// All of it, along one axis.
template <class T>
View view_of(const std::vector<T>& data, Device device = Device::cpu) {
    return view_of(data, {static_cast<int64_t>(data.size())}, device);
}

}  // namespace test
