"""The world behind the emulated API: OME's controller, workload controllers, scheduler, kubelets, processes."""
