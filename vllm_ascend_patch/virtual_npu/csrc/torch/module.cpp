// SPDX-License-Identifier: Apache-2.0
//
// The Python module `_virtual_npu`: installation, aliases and graph recording for kernels written in Python, and the
// process group.
#include <torch/csrc/utils/pybind.h>

#include <pybind11/chrono.h>

#include "alias.h"
#include "allocator.h"
#include "graph.h"
#include "hccl_backend.h"
#include "kernel.h"
#include "order.h"

namespace py = pybind11;

namespace virtual_npu {
namespace {

void bind_backend(py::module_& module) {
  using Release = py::call_guard<py::gil_scoped_release>;
  py::module_::import("torch._C._distributed_c10d");
  py::class_<HcclBackend, c10::intrusive_ptr<HcclBackend>, c10d::Backend>(module, "ProcessGroupHCCL")
      .def(
          py::init<
              c10::intrusive_ptr<c10d::Backend>,
              int,
              int,
              Milliseconds,
              std::string,
              std::vector<int64_t>,
              c10::intrusive_ptr<c10d::Backend::Options>>(),
          py::arg("links"),
          py::arg("rank"),
          py::arg("size"),
          py::arg("timeout"),
          py::arg("communicator"),
          py::arg("global_ranks"),
          py::arg("options"),
          Release())
      .def(
          "get_hccl_comm_name",
          [](const HcclBackend& self, int, bool) { return self.communicator(); },
          py::arg("rank"),
          py::arg("init_comm") = true)
      .def_property_readonly("options", &HcclBackend::options)
      .def_property_readonly("closed", &HcclBackend::closed)
      .def("_set_default_timeout", &HcclBackend::set_timeout, py::arg("timeout"))
      .def(
          "all_gather_into_tensor_uneven",
          &HcclBackend::allgather_uneven,
          py::arg("output"),
          py::arg("input"),
          py::arg("output_split_sizes") = std::vector<int64_t>(),
          Release())
      .def(
          "reduce_scatter_tensor_uneven",
          &HcclBackend::reduce_scatter_uneven,
          py::arg("output"),
          py::arg("input"),
          py::arg("input_split_sizes") = std::vector<int64_t>(),
          py::arg("opts") = c10d::ReduceScatterOptions(),
          Release())
      .def(
          "batch_isend_irecv",
          [](HcclBackend& self, const std::vector<std::string>& kinds, Tensors tensors, const std::vector<int>& peers) {
            TORCH_CHECK(
                kinds.size() == tensors.size() && kinds.size() == peers.size(),
                "batch_isend_irecv needs as many operations as tensors and ranks");
            self.startCoalescing();
            for (size_t i = 0; i < kinds.size(); ++i) {
              Tensors one{tensors[i]};
              kinds[i] == "isend" ? self.send(one, peers[i], 0) : self.recv(one, peers[i], 0);
            }
            return self.endCoalescing();
          },
          py::arg("op_type"),
          py::arg("tensors"),
          py::arg("remote_rank_list"),
          Release());
}

// A kernel written in Python, as a graph keeps it.
struct PythonCall {
  py::function function;

  explicit PythonCall(py::function call) : function(std::move(call)) {}
  PythonCall(const PythonCall&) = delete;
  PythonCall& operator=(const PythonCall&) = delete;
  ~PythonCall() {
    if (Py_IsInitialized() != 0) {
      const py::gil_scoped_acquire gil;
      function = py::function();
    } else {
      function.release();
    }
  }

  void run() const {
    const py::gil_scoped_acquire gil;
    function();
  }
};

void bind_graph(py::module_& module) {
  py::class_<GraphStream>(module, "GraphStream")
      .def(py::init([](int device) { return GraphStream(c10::Device(kNPU, static_cast<c10::DeviceIndex>(device))); }))
      .def_property_readonly("runs", &GraphStream::runs)
      .def_property_readonly("captures", &GraphStream::captures)
      .def_property_readonly("updates", &GraphStream::updates)
      .def(
          "add",
          [](const GraphStream& stream, const std::string& name, py::function call, std::shared_ptr<order::Captured> order) {
            stream.add(
                name, [recorded = std::make_shared<PythonCall>(std::move(call))] { recorded->run(); }, std::move(order));
          },
          py::arg("name"),
          py::arg("call"),
          py::arg("order") = nullptr)
      .def("save", &GraphStream::save, py::arg("tensor"))
      .def(
          "poison",
          [](const GraphStream& stream, const at::Tensor& tensor) {
            stream.poison(tensor.mutable_data_ptr(), span_of(tensor));
          },
          py::arg("tensor"))
      .def("refuse", &GraphStream::refuse, py::arg("call"), py::arg("why"));
}

void bind_order(py::module_& module) {
  py::class_<order::Captured, std::shared_ptr<order::Captured>>(module, "CapturedOrder");
  module.def("check_order", &order::enable, py::arg("stacks"));
  module.def("checks_order", &order::enabled);
  module.def("finish_order", &order::finish);
  module.def(
      "launch",
      [](const std::string& name, int device, const std::vector<at::Tensor>& reads, const std::vector<at::Tensor>& writes,
         const std::optional<std::string>& communicator) {
        order::Launch launch(name, c10::Device(kNPU, static_cast<c10::DeviceIndex>(device)));
        for (const at::Tensor& tensor : reads) {
          launch.read(tensor);
        }
        for (const at::Tensor& tensor : writes) {
          launch.write(tensor);
        }
        if (communicator) {
          launch.communicate(*communicator);
        }
        launch.commit();
        return std::const_pointer_cast<order::Captured>(launch.captured());
      },
      py::arg("name"),
      py::arg("device"),
      py::arg("reads"),
      py::arg("writes"),
      py::arg("communicator") = py::none());
}

} // namespace
} // namespace virtual_npu

PYBIND11_MODULE(_virtual_npu, module) {
  module.def("install_allocator", &virtual_npu::install_allocator);
  module.def("install_kernels", &virtual_npu::install_kernels);
  module.def("alias_cpu", &virtual_npu::owning_alias);
  module.def("borrow_cpu", &virtual_npu::borrowed_alias);
  virtual_npu::bind_order(module);
  virtual_npu::bind_graph(module);
  virtual_npu::bind_backend(module);
}
