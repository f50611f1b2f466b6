//! The program from outside: built, started in folders of its own, and judged by what it prints and how it ends.

mod bad_input;
mod command_tasks;
mod main_job;
mod servers;
mod shutdown;
mod support;
