// fastdarts._C: importing it registers the CPU implementations of the fastdarts:: operators. Two functions of its own need no
// binding library, whose headers take a compiler longer than all else here.
#include <Python.h>

#include <cstdint>
#include <exception>

#include "dispatch.h"

namespace fastdarts {
int64_t empty_block_cache();  // block_cache.h, without its tensors
}

namespace {

PyObject* instruction_set(PyObject*, PyObject*) {
  try {
    return PyUnicode_FromString(fastdarts::instruction_set().c_str());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

PyObject* empty_block_cache(PyObject*, PyObject*) { return PyLong_FromLongLong(fastdarts::empty_block_cache()); }

PyMethodDef functions[] = {
    {"instruction_set", instruction_set, METH_NOARGS, "avx512, avx2 or portable: the kernels in use"},
    {"empty_block_cache", empty_block_cache, METH_NOARGS, "Frees the kernels' unused memory; returns the bytes freed"},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "fastdarts._C", nullptr, -1, functions, nullptr, nullptr, nullptr, nullptr};

}  // namespace

#define FASTDARTS_CONCATENATED(a, b) a##b
#define FASTDARTS_INIT(name) FASTDARTS_CONCATENATED(PyInit_, name)
PyMODINIT_FUNC FASTDARTS_INIT(TORCH_EXTENSION_NAME)() { return PyModule_Create(&module); }
