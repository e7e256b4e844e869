// A non-owning strided view of somebody else's tensor. Whoever makes it keeps the memory alive.
#pragma once

#include <cstdint>
#include <string>

namespace edgeprune {

constexpr int kMaxDims = 8;

enum class DType { f32, f16, bf16, i32, i64, u8, other };
enum class Device { cpu, cuda, other };

struct View {
    void* data = nullptr;
    DType dtype = DType::other;
    Device device = Device::cpu;
    int device_index = 0;
    bool read_only = false;
    int dims = 0;
    int64_t shape[kMaxDims] = {};
    int64_t stride[kMaxDims] = {};  // in elements; may be zero (expanded), never negative from torch

    int64_t size() const;
    bool contiguous() const;  // row-major without gaps; axes of size 1, and all of no elements, may have any stride
};

// "(64, 3, 7, 7)", for error sentences.
std::string shape_text(const View& view);

bool same_shape(const View& a, const View& b);

}  // namespace edgeprune
