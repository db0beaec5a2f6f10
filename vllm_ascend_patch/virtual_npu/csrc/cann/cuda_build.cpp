// SPDX-License-Identifier: Apache-2.0
// Lets torch_npu load beside a CUDA build of torch, which on some machines is the only one to be had.
//
// Both of them register the allocator settings of their device in one set of names, and the second to come ends the process
// over the names that they share ("Duplicated key ...", torch 2.10 on). This library is loaded after torch and just before
// torch_npu, which links it. No CUDA device is used here, so the names of CUDA's allocator are forgotten. With a CPU build
// of torch there is no such library and nothing to do. Nothing else of torch is touched.

#include <dlfcn.h>

#include <string>
#include <unordered_set>

namespace {

using Keys = std::unordered_set<std::string>;

// c10::CachingAllocator::AcceleratorAllocatorConfig::getMutableKeys(), from torch 2.14 on a function of libc10; before, it is
// compiled into every caller, and its static variable is one object in the whole process.
constexpr const char* FUNCTION = "_ZN3c1016CachingAllocator26AcceleratorAllocatorConfig14getMutableKeysB5cxx11Ev";
constexpr const char* VARIABLE = "_ZZN3c1016CachingAllocator26AcceleratorAllocatorConfig14getMutableKeysB5cxx11EvE4keys";

__attribute__((constructor)) void forget_keys_of_cuda() {
    void* cuda = dlopen("libc10_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    if (cuda == nullptr) {
        return;
    }
    auto* keys = static_cast<Keys*>(dlsym(cuda, VARIABLE));
    if (keys == nullptr) {
        if (void* function = dlsym(cuda, FUNCTION)) {
            keys = &reinterpret_cast<Keys& (*)()>(function)();
        }
    }
    if (keys != nullptr) {
        keys->clear();
    }
    dlclose(cuda);
}

}  // namespace
