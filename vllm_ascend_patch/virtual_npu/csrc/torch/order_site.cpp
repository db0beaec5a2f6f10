// SPDX-License-Identifier: Apache-2.0
//
// See order_site.h.
#include "order_site.h"

#include <Python.h>

#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace virtual_npu::order {
namespace {

constexpr int kDeepest = 64; // frames looked at
constexpr size_t kLongest = 16; // frames of a stack that are kept

// Frames of these are not where a user would look.
constexpr const char* kLibraries[] = {"packages/torch/", "packages/torch_npu/", "/vllm_ascend_patch/virtual_npu/"};

using Line = std::pair<PyCodeObject*, int>;

// Code objects in it are never given back: a program has so many of them and no more.
struct Sites {
  std::unordered_map<PyCodeObject*, bool> in_library; // guarded by the GIL
  std::map<std::vector<Line>, uint32_t> numbers; // likewise
  std::mutex mutex; // guards what follows; nobody takes the GIL with it
  std::vector<std::string> texts{"a thread without Python frames"};
};

Sites& sites() {
  static auto* all = new Sites; // kept: threads may outlive the process's statics
  return *all;
}

std::string text_of(PyObject* value) {
  const char* text = PyUnicode_Check(value) ? PyUnicode_AsUTF8(value) : nullptr;
  if (text == nullptr) {
    PyErr_Clear();
  }
  return text == nullptr ? "?" : text;
}

bool in_library(PyCodeObject* code) {
  const auto [found, added] = sites().in_library.try_emplace(code, false);
  if (added) {
    Py_INCREF(code);
    const std::string file = text_of(code->co_filename);
    found->second = file.rfind("<frozen", 0) == 0;
    for (const char* library : kLibraries) {
      found->second = found->second || file.find(library) != std::string::npos;
    }
  }
  return found->second;
}

std::string describe(const std::vector<Line>& lines) {
  std::string text;
  for (const auto& [code, line] : lines) {
    text += (text.empty() ? "" : "\n      ") + text_of(code->co_filename) + ":" + std::to_string(line) + " in " +
        text_of(code->co_name);
  }
  return text;
}

std::vector<Line> lines_of_thread(bool stack) {
  std::vector<Line> lines;
  Line innermost{nullptr, 0};
  PyFrameObject* frame = PyEval_GetFrame();
  Py_XINCREF(frame);
  for (int depth = 0; frame != nullptr && depth < kDeepest; ++depth) {
    PyCodeObject* code = PyFrame_GetCode(frame);
    const bool library = in_library(code);
    if (innermost.first == nullptr || !library) {
      const Line line{code, PyFrame_GetLineNumber(frame)};
      innermost = innermost.first == nullptr ? line : innermost;
      if (!library) {
        lines.push_back(line);
      }
    }
    Py_DECREF(code); // in_library has kept it
    PyFrameObject* back = PyFrame_GetBack(frame);
    Py_DECREF(frame);
    frame = back;
    if (!lines.empty() && (!stack || lines.size() == kLongest)) {
      Py_XDECREF(frame);
      break;
    }
  }
  if (lines.empty() && innermost.first != nullptr) {
    lines.push_back(innermost);
  }
  return lines;
}

} // namespace

uint32_t call_site(bool stack) {
  if (Py_IsInitialized() == 0) {
    return 0;
  }
  const PyGILState_STATE gil = PyGILState_Ensure();
  Sites& all = sites();
  uint32_t number = 0;
  if (auto lines = lines_of_thread(stack); !lines.empty()) {
    const auto [found, added] = all.numbers.try_emplace(std::move(lines), 0);
    if (added) {
      std::string text = describe(found->first);
      const std::lock_guard<std::mutex> lock(all.mutex);
      found->second = static_cast<uint32_t>(all.texts.size());
      all.texts.push_back(std::move(text));
    }
    number = found->second;
  }
  PyGILState_Release(gil);
  return number;
}

std::string describe_site(uint32_t site) {
  Sites& all = sites();
  const std::lock_guard<std::mutex> lock(all.mutex);
  return all.texts[site];
}

} // namespace virtual_npu::order
