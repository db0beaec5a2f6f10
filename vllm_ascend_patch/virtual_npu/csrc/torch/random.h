// SPDX-License-Identifier: Apache-2.0
//
// Random numbers: the state of the NPU's generators decides, the CPU's generator computes.
#pragma once

#include <ATen/core/Generator.h>

#include <optional>

namespace virtual_npu {

// A CPU generator that follows from the seed and offset of the NPU generator `given` (default: the one of `device`),
// whose offset moves on, so that saved and restored states and seeds reproduce what they do on a device.
at::Generator cpu_generator(const std::optional<at::Generator>& given, c10::Device device);

// Where a captured call finds the state of the NPU's generator at a replay: the graph's seed and offset in device memory,
// which torch_npu fills in before every replay, and the call's own share of the offset.
struct CapturedSeed {
  const int64_t* seed;
  const int64_t* offset;
  uint64_t share;
};

CapturedSeed captured_seed(const std::optional<at::Generator>& given, c10::Device device);

// The generator that an eager call in the same place would have got.
at::Generator seeded_cpu_generator(const CapturedSeed& seed);

// While it lives, the CPU's default generator is one that follows from the NPU's: for kernels that take no generator.
class BorrowedDefaultGenerator {
 public:
  BorrowedDefaultGenerator(bool enable, c10::Device device);
  explicit BorrowedDefaultGenerator(const std::optional<CapturedSeed>& seed);
  ~BorrowedDefaultGenerator();
  BorrowedDefaultGenerator(const BorrowedDefaultGenerator&) = delete;
  BorrowedDefaultGenerator& operator=(const BorrowedDefaultGenerator&) = delete;

 private:
  void borrow(uint64_t seed);

  c10::intrusive_ptr<c10::TensorImpl> saved_;
};

} // namespace virtual_npu
