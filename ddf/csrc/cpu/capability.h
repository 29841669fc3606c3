// Names with the instruction set that a file is compiled for.
#pragma once

#ifndef DDF_CPU_CAPABILITY
#define DDF_CPU_CAPABILITY default
#endif
#define DDF_JOIN(a, b) a##b
#define DDF_NAMED(prefix, name) DDF_JOIN(prefix, name)
#define DDF_TEXT_OF(name) #name
#define DDF_TEXT(name) DDF_TEXT_OF(name)
