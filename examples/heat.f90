! The heat equation in one dimension, explicit: u(i) += r (u(i-1) - 2 u(i) + u(i+1)). It is stable for r <= 0.5 and diverges beyond.
!
!     gfortran -O2 simspool.f90 heat.f90 -o heat
!     eval "$(agent log run --export --name heat)"
!     ./heat 1000 2000 0.6        # cells, steps, r: stopped by the alert that it defines
program heat
  use, intrinsic :: ieee_arithmetic, only: ieee_is_nan, ieee_quiet_nan, ieee_value
  use simspool
  implicit none
  integer :: cells, steps, step, centre
  double precision :: r
  double precision, allocatable :: u(:)
  type(simspool_log) :: log

  cells = nint(argument(1, 100d0))
  steps = nint(argument(2, 1000d0))
  r = argument(3, 0.4d0)
  if (cells < 3) error stop 'heat: at least 3 cells'
  centre = cells / 2 + 1
  allocate (u(cells), source=0d0)
  u(centre) = 1d0

  log = simspool_open('heat-fortran')
  call log%line('{"metadata": {"solver": "heat.f90"}}')
  call log%line('{"define": {"name": "diverged", "metric": "peak", "rule": "is above", "threshold": 1D6, ' // &
                '"window": .001, "trigger_abort": true}}')

  do step = 1, steps
    u(2:cells - 1) = u(2:cells - 1) + r * (u(1:cells - 2) - 2d0 * u(2:cells - 1) + u(3:cells))
    call log%metric(step, ['peak  ', 'centre'], [peak(u), u(centre)])
  end do

  call log%line('{"event": "all steps are done", "level": "info"}')

contains

  ! The largest magnitude, NaN where there is one.
  pure double precision function peak(values)
    double precision, intent(in) :: values(:)

    peak = maxval(abs(values))
    if (any(ieee_is_nan(values))) peak = ieee_value(peak, ieee_quiet_nan)
  end function

  double precision function argument(number, default)
    integer, intent(in) :: number
    double precision, intent(in) :: default
    character(64) :: text

    argument = default
    if (command_argument_count() < number) return
    call get_command_argument(number, text)
    read (text, *) argument
  end function

end program
