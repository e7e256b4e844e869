#include "python/dlpack.h"

#include "base/error.h"

namespace py = pybind11;

namespace edgeprune {
namespace {

// ---- the layout that the DLPack standard prescribes (C ABI of versions 0.x and 1.x) --------------------------------

struct DLDevice {
    int32_t type;
    int32_t id;
};
struct DLDataType {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
};
struct DLTensor {
    void* data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t* shape;
    int64_t* strides;  // null: row-major
    uint64_t byte_offset;
};
struct DLManagedTensor {
    DLTensor tensor;
    void* context;
    void (*deleter)(DLManagedTensor*);
};
struct DLManagedTensorVersioned {
    uint32_t major, minor;
    void* context;
    void (*deleter)(DLManagedTensorVersioned*);
    uint64_t flags;
    DLTensor tensor;
};
constexpr int32_t kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13;
constexpr uint8_t kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4;
constexpr uint64_t kReadOnly = 1;

View view_of(const char* op, const char* name, const DLTensor& tensor, bool read_only) {
    if (tensor.ndim > kMaxDims)
        fail("%s: %s has %d dimensions; at most %d are supported", op, name, tensor.ndim, kMaxDims);
    View view;
    view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
    view.read_only = read_only;
    view.dims = tensor.ndim;
    view.device_index = tensor.device.id;
    if (tensor.device.type == kCpu || tensor.device.type == kCudaHost) {
        view.device = Device::cpu;
        view.device_index = 0;  // pinned memory names the GPU it was pinned for
    } else {
        view.device = tensor.device.type == kCuda || tensor.device.type == kCudaManaged ? Device::cuda : Device::other;
    }
    if (tensor.dtype.lanes == 1) {
        const auto is = [&](int code, int bits) { return tensor.dtype.code == code && tensor.dtype.bits == bits; };
        if (is(kFloat, 32)) view.dtype = DType::f32;
        if (is(kFloat, 16)) view.dtype = DType::f16;
        if (is(kBfloat, 16)) view.dtype = DType::bf16;
        if (is(kInt, 32)) view.dtype = DType::i32;
        if (is(kInt, 64)) view.dtype = DType::i64;
        if (is(kUInt, 8)) view.dtype = DType::u8;
    }
    int64_t row_major = 1;
    for (int d = tensor.ndim - 1; d >= 0; --d) {
        view.shape[d] = tensor.shape[d];
        view.stride[d] = tensor.strides ? tensor.strides[d] : row_major;
        row_major *= tensor.shape[d];
    }
    return view;
}

// A capsule that is not renamed still belongs to its producer: its destructor calls the deleter when we let it go.
py::object capsule_of(const char* op, const char* name, py::handle object) {
    if (PyCapsule_CheckExact(object.ptr())) return py::reinterpret_borrow<py::object>(object);
    if (!py::hasattr(object, "__dlpack__"))
        fail("%s: %s is a %s, not a tensor that offers __dlpack__", op, name, Py_TYPE(object.ptr())->tp_name);
    try {
        return object.attr("__dlpack__")(py::arg("max_version") = py::make_tuple(1, 0));
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_TypeError)) throw;  // torch before 2.9 and numpy before 2.1 do not know max_version
    }
    return object.attr("__dlpack__")();
}

}  // namespace

Borrowed borrow(const char* op, const char* name, py::handle object) {
    py::object capsule = capsule_of(op, name, object);
    PyObject* const raw = capsule.ptr();
    if (PyCapsule_IsValid(raw, "dltensor")) {
        const auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(raw, "dltensor"));
        return {view_of(op, name, managed->tensor, false), std::move(capsule)};
    }
    if (PyCapsule_IsValid(raw, "dltensor_versioned")) {
        const auto* managed = static_cast<DLManagedTensorVersioned*>(PyCapsule_GetPointer(raw, "dltensor_versioned"));
        if (managed->major != 1)
            fail("%s: %s comes as DLPack version %u; only version 1 is understood", op, name, managed->major);
        return {view_of(op, name, managed->tensor, managed->flags & kReadOnly), std::move(capsule)};
    }
    fail("%s: %s is a capsule, but holds no DLPack tensor or was used before", op, name);
}

}  // namespace edgeprune
